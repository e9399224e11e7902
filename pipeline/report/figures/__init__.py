"""The papers' figures, one a file. A figure is a function `draw(model) -> Figure`; its file's name is its name.

Each is written as PNG and SVG with its numbers beside it as CSV, to evals/figures/<model>/. Colours are told apart in
greyscale: series differ in lightness, marker and dash, maps rise in lightness.
"""

from __future__ import annotations

import csv
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES: tuple[dict[str, Any], ...] = (
    {"color": "#08306b", "marker": "o", "linestyle": "-"},
    {"color": "#d95f0e", "marker": "s", "linestyle": "--"},
    {"color": "#74c476", "marker": "^", "linestyle": ":"},
    {"color": "#7a7a7a", "marker": "x", "linestyle": "-."},
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn figure and its numbers."""

    drawing: Any
    headings: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def names() -> list[str]:
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))


def write(model: str, name: str) -> list[Path]:
    """Draws one figure of a model and writes its three files.

    Raises:
        UserError: no such figure, or what it shows has not been measured; says the command that does.
    """
    if name not in names():
        raise UserError(f"no figure {name!r}; choose from {', '.join(names())}")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = model  # the same numbers give the same file
    figure: Figure = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").draw(model)
    stem, written = store.figures_dir(model) / name, []
    for suffix in (".png", ".svg"):
        with store.atomic(stem.with_suffix(suffix)) as temporary:
            metadata = {"Date": None} if suffix == ".svg" else {}
            figure.drawing.savefig(temporary, format=suffix[1:], dpi=160, metadata=metadata)
        written.append(stem.with_suffix(suffix))
    with store.atomic(stem.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as out:
        csv.writer(out).writerows([figure.headings, *figure.rows])
    return [*written, stem.with_suffix(".csv")]


def axes(title: str, x: str, y: str, width: float = 7.0) -> tuple[Any, Axes]:
    """An empty figure with one set of axes, labelled."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(width, 4.4), layout="constrained")
    plot = drawing.add_subplot()
    plot.set_title(title, fontsize=11)
    plot.set_xlabel(x)
    plot.set_ylabel(y)
    plot.spines[["top", "right"]].set_visible(False)
    return drawing, plot
