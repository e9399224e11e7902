from __future__ import annotations

from pathlib import Path

from pipeline.report import collect
from pipeline.report.content import ReportContent
from tests import results


def test_all_parts_are_of_one_collection(workdir: Path) -> None:
    results.small_grid("Llama-2-7b-hf")
    content = ReportContent.of(collect.collect())
    assert [table.name for table in content.tables] == [f"tyukin-{n:02d}" for n in range(1, 11)]
    assert len(content.recommendations) == 6
    names = [chart.name for chart in content.charts]
    assert len(set(names)) == len(names) and "pareto-saved" in names
    assert all(figure.chart in (None, *names) for figure in content.figures)
