"""Building blocks of the page's charts: Plotly figures in plain JSON.

The `meta` of a trace holds its model and kind, which the page's filter reads. Kinds differ in colour (Okabe
and Ito's palette) and in marker, so that nobody needs the colours.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.report.rows import ArtefactResults
from pipeline.report.sources import SourceFile

Trace = dict[str, Any]
"""One element of a Plotly figure's "data"."""

GREY = "#7f7f7f"
STYLE = {
    "base": (GREY, "star"),
    "attn": ("#0072b2", "circle"),
    "mlp": ("#d55e00", "square"),
    "block": ("#009e73", "triangle-up"),
    "mixed": ("#cc79a7", "cross"),
}
"""Kind → colour and marker."""
LABELS = {"base": "base", "attn": "attention", "mlp": "MLP", "block": "block", "mixed": "attention and MLP"}
MANY = 1000
"""Points above which WebGL draws a trace; SVG draws smaller ones, since a browser has few WebGL contexts."""


def opened(symbol: str) -> str:
    """The marker of a compensated variant: the kind's own, not filled."""
    return f"{symbol}-open"


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, or why there is none.

    Attributes:
        figure: {"data": [...], "layout": {...}}, as plotly.js and plotly.graph_objects take it.
        gap: what has not been measured, with the command that measures it.
    """

    name: str
    title: str
    caption: str
    figure: dict[str, Any]
    gap: str | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One mark: its place, its standard error, its words, and the file behind it."""

    x: float
    y: float
    words: str
    source: SourceFile | None
    spread: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """What the points of one trace have in common.

    Attributes:
        lines: whether its points are joined.
    """

    name: str
    model: str
    kind: str
    colour: str
    symbol: str
    lines: bool = False

    @classmethod
    def of(cls, model: str, kind: str, suffix: str = "") -> Series:
        """The points of a model and a kind, in the kind's colour and marker."""
        return cls(f"{model}, {LABELS[kind]}{suffix}", model, kind, *STYLE[kind])


def trace_of(points: list[Point], series: Series) -> Trace:
    """The points as a Plotly trace; error bars where a point has a standard error."""
    trace: Trace = {
        "type": "scattergl" if len(points) > MANY else "scatter",
        "mode": "lines+markers" if series.lines else "markers",
        "name": html.escape(series.name),
        "x": [p.x for p in points],
        "y": [p.y for p in points],
        "text": [html.escape(p.words) for p in points],
        "customdata": [p.source.copy if p.source else None for p in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": series.colour,
            "symbol": series.symbol,
            "size": 14 if series.kind == "base" else 9,
        },
        "meta": {"model": series.model, "kind": series.kind},
    }
    # Thousands of bars would hide the points.
    if any(p.spread is not None for p in points) and len(points) <= MANY:
        array = [p.spread or 0 for p in points]
        trace["error_y"] = {"type": "data", "array": array, "thickness": 1, "width": 2}
    return trace


def layout_of(x: str, y: str, **more: Any) -> dict[str, Any]:
    """A Plotly layout with the titles of its axes."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "hovermode": "closest", **more}


def by_kind(artefacts: Iterable[ArtefactResults]) -> dict[tuple[str, str], list[ArtefactResults]]:
    """(model, kind) → its artefacts."""
    groups: dict[tuple[str, str], list[ArtefactResults]] = {}
    for artefact in artefacts:
        groups.setdefault((artefact.model, artefact.kind), []).append(artefact)
    return groups


def workload_text(decode: bool, length: int) -> str:
    """'prefill of 50 tokens', 'decode on 50 tokens'."""
    return f"{'decode on' if decode else 'prefill of'} {length} tokens"
