"""The figures, one a file; the file's name is the figure's.

A file computes its figure's data once. Both forms draw these data:

- `charts(collection) -> list[Chart]` with `PLACE`: on the page. Charts stand in the order of PLACE.
- `draw(model, project) -> Drawing`: as PNG, SVG and CSV, in evals/figures/<model>/.

`SHOWS` lists the figures of papers that its charts show.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pipeline.report import papers
from pipeline.report.charts import Chart
from pipeline.report.drawing import Drawing
from pipeline.report.rows import Collection
from pipeline.store import Project
from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """A figure of a paper.

    Attributes:
        paper: its key in papers.toml.
        number: '1c'.
        title: what it shows.
        charts: the name of the chart that shows it; 'cosine-' for all charts whose names begin so.
        command: measures what it needs.
    """

    paper: str
    number: str
    title: str
    charts: str
    command: str

    @property
    def text(self) -> str:
        """'Gromov et al., Figure 4: heat map …'."""
        return f"{self.paper.capitalize()} et al., Figure {self.number}{self.title}"

    def is_shown_by(self, chart: Chart) -> bool:
        """Whether the chart shows it."""
        if self.charts.endswith("-"):
            return chart.name.startswith(self.charts)
        return chart.name == self.charts


class ShownFigure(NamedTuple):
    """A paper's figure, what there is of it in words, and the chart's name; a gap has no chart."""

    figure: str
    words: str
    chart: str | None


def charts(collection: Collection) -> list[Chart]:
    """All charts of the page."""
    drawn = [module for module in _modules().values() if hasattr(module, "charts")]
    drawn.sort(key=lambda module: module.PLACE)
    return [chart for module in drawn for chart in module.charts(collection)]


def paper_figures(page: list[Chart]) -> list[ShownFigure]:
    """What there is of each paper's figures on the page; a gap names the command that fills it."""
    shown: list[ShownFigure] = []
    for figure in _paper_figures():
        own = [chart for chart in page if figure.is_shown_by(chart)]
        there = [chart for chart in own if not chart.gap]
        shown += [ShownFigure(figure.text, chart.title, chart.name) for chart in there]
        if not there:
            gap = own[0].gap if own else None
            shown.append(ShownFigure(figure.text, gap or f"not run: {figure.command}", None))
    return shown


def _paper_figures() -> list[PaperFigure]:
    """The papers' figures, paper by paper, by their numbers."""
    order = list(papers.sources())

    def place(figure: PaperFigure) -> tuple[int, int, str]:
        digits = re.match(r"\d+", figure.number)
        return order.index(figure.paper), int(digits[0]) if digits else 0, figure.number

    return sorted((f for module in _modules().values() for f in getattr(module, "SHOWS", ())), key=place)


def _modules() -> dict[str, ModuleType]:
    """Name → module of each file in this folder."""
    names_here = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}") for name in names_here}


def names() -> list[str]:
    """The figures that can be written to files."""
    return [name for name, module in _modules().items() if hasattr(module, "draw")]


def write(model: str, name: str, project: Project | None = None) -> list[Path]:
    """Draws one figure of a model and writes its PNG, SVG and CSV.

    Args:
        model: its name under graphs/.
        name: one of `names()`.
        project: the current directory's by default.

    Raises:
        UserError: no such figure, or what it shows has not been measured; says the command that does.
    """
    if name not in names():
        raise UserError(f"no figure {name!r}; choose from {', '.join(names())}")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = model  # the same numbers give the same file
    project = project or Project()
    drawing: Drawing = _modules()[name].draw(model, project)
    return drawing.write(project.figures(model) / name)
