"""What both forms of the report, page and Markdown, say."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report import figures, recommend, tyukin
from pipeline.report.charts import Chart
from pipeline.report.figures import ShownFigure
from pipeline.report.recommend import Recommendation
from pipeline.report.rows import Collection
from pipeline.report.tables import PaperTable


@dataclass(frozen=True, slots=True)
class ReportContent:
    """All parts of the report, computed once.

    Attributes:
        tables: in the papers' layout.
        figures: what there is of each of the papers' figures.
    """

    collection: Collection
    tables: list[PaperTable]
    recommendations: list[Recommendation]
    charts: list[Chart]
    figures: list[ShownFigure]

    @classmethod
    def of(cls, collection: Collection) -> ReportContent:
        """The parts of a report on a collection."""
        charts = figures.charts(collection)
        return cls(
            collection=collection,
            tables=tyukin.tables(collection),
            recommendations=recommend.recommend(collection),
            charts=charts,
            figures=figures.paper_figures(charts),
        )
