"""Building blocks of the figures' files: matplotlib drawings with their numbers.

Series can be told apart in greyscale: they differ in lightness, marker and dash.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES: tuple[dict[str, Any], ...] = (
    {"color": "#08306b", "marker": "o", "linestyle": "-"},
    {"color": "#d95f0e", "marker": "s", "linestyle": "--"},
    {"color": "#74c476", "marker": "^", "linestyle": ":"},
    {"color": "#7a7a7a", "marker": "x", "linestyle": "-."},
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A matplotlib figure and its numbers."""

    figure: Figure
    headings: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def write(self, stem: Path) -> list[Path]:
        """Writes <stem>.png, <stem>.svg and <stem>.csv."""
        png, svg, table = (stem.with_suffix(suffix) for suffix in (".png", ".svg", ".csv"))
        for path in (png, svg):
            metadata = {"Date": None} if path == svg else {}
            with store.atomic(path) as temporary:
                self.figure.savefig(temporary, format=path.suffix[1:], dpi=160, metadata=metadata)
        with store.atomic(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([self.headings, *self.rows])
        return [png, svg, table]


def axes(title: str, x: str, y: str, width: float = 7.0) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes, labelled; `width` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.4), layout="constrained")
    plot = figure.add_subplot()
    plot.set_title(title, fontsize=11)
    plot.set_xlabel(x)
    plot.set_ylabel(y)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot
