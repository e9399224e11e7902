"""Time saved against its ceiling, which is what the removed work allows."""

from __future__ import annotations

from pipeline.report.charts import (
    GREY,
    Chart,
    Point,
    Series,
    Trace,
    by_kind,
    layout_of,
    trace_of,
    workload_text,
)
from pipeline.report.rows import ArtefactResults, Collection

PLACE = 20


def charts(collection: Collection) -> list[Chart]:
    """One point for each variant and length, and the line on which all is won that can be."""
    data, edge = [], 0.0
    for (model, kind), artefacts in by_kind(collection.artefacts).items():
        points = [] if kind == "base" else _points(artefacts)
        edge = max([edge, *(p.x for p in points)])
        if points:
            data.append(trace_of(points, Series.of(model, kind)))
    if data:
        data.append(_diagonal(edge * 1.1))
    chart = Chart(
        name="ceiling",
        title="Time saved against its ceiling",
        caption="On the dashed line all that the removed work allows has been won; a point above it by more "
        "than its interval is a measurement bug, or time that is no counted work.",
        figure={"data": data, "layout": layout_of("ceiling, % of the time", "saved, % of the time")},
        gap=None if data else "not run: needs `pipeline bench` of a variant",
    )
    return [chart]


def _points(artefacts: list[ArtefactResults]) -> list[Point]:
    points = []
    for artefact in artefacts:
        for latency in artefact.latencies:
            row = latency.record
            if row.kind != "artefact" or row.ceiling is None:
                continue
            low, high = row.interval
            words = (
                f"{artefact.model} {artefact.name}, {workload_text(latency.conditions.decode, row.length)}: "
                f"{row.improvement:.1f} % saved [{low:.1f}, {high:.1f}], ceiling {row.ceiling:.1f} %"
            )
            points.append(Point(row.ceiling, row.improvement, words, latency.source, (high - low) / 2))
    return points


def _diagonal(edge: float) -> Trace:
    return {
        "x": [0, edge],
        "y": [0, edge],
        "mode": "lines",
        "type": "scatter",
        "name": "ceiling",
        "hoverinfo": "skip",
        "line": {"dash": "dash", "color": GREY, "width": 1},
        "meta": {"model": "", "kind": ""},
    }
