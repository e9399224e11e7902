from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from pipeline.report import drawing
from pipeline.report.drawing import Drawing


def test_picture_and_numbers(tmp_path: Path) -> None:
    figure, plot = drawing.axes("title", "x axis", "y axis")
    plot.plot([1, 2], [3, 4], **drawing.SERIES[0])
    png, svg, table = Drawing(figure, ("x", "y"), [(1, 3), (2, 4)]).write(tmp_path / "new" / "one")
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()[:400]
    assert list(csv.reader(table.open(newline=""))) == [["x", "y"], ["1", "3"], ["2", "4"]]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"one.png", "one.svg", "one.csv"}
    assert plot.get_xlabel() == "x axis" and plot.get_title() == "title"


def test_series_differ_without_colour() -> None:
    styles = [(s["marker"], s["linestyle"]) for s in drawing.SERIES]
    assert len(set(styles)) == len(styles)
