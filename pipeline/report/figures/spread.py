"""The spread of the latencies: p50, p90 and p99, which the bench keeps of its samples."""

from __future__ import annotations

from pipeline.report.charts import Chart, Point, Series, by_kind, layout_of, trace_of, workload_text
from pipeline.report.rows import ArtefactResults, Collection, SourcedLatency

PLACE = 30
PARTS = {"p50": (1.0, "circle"), "p90": (0.6, "line-ns-open"), "p99": (0.3, "x-thin-open")}
"""Percentile → opacity and marker."""


def charts(collection: Collection) -> list[Chart]:
    """A row for each workload."""
    data = []
    for (model, kind), artefacts in by_kind(collection.artefacts).items():
        latencies = sorted(
            ((a, latency) for a in artefacts for latency in a.latencies), key=lambda pair: pair[1].record.p50
        )
        if not latencies:
            continue
        workloads = [workload_text(one.conditions.decode, one.record.length) for _, one in latencies]
        for part, (opacity, symbol) in PARTS.items():
            points = [_point(artefact, latency, part) for artefact, latency in latencies]
            trace = trace_of(points, Series.of(model, kind, f", {part}"))
            trace["marker"] |= {"opacity": opacity, "symbol": symbol}
            data.append({**trace, "y": workloads})
    layout = layout_of("ms a pass", "", yaxis={"type": "category", "automargin": True})
    chart = Chart(
        name="latency-spread",
        title="Spread of the latencies",
        caption="Median (dot), p90 (bar) and p99 (cross) of the trusted samples, in ms.",
        figure={"data": data, "layout": layout},
        gap=None if data else "not run: needs `pipeline bench`",
    )
    return [chart]


def _point(artefact: ArtefactResults, latency: SourcedLatency, part: str) -> Point:
    """One percentile of one latency; the chart sets its row."""
    row = latency.record
    milliseconds: float = getattr(row, part)
    words = (
        f"{artefact.model} {artefact.name} ({row.kind}), "
        f"{workload_text(latency.conditions.decode, row.length)}: {part} {milliseconds:.1f} ms, "
        f"{latency.device}"
    )
    return Point(milliseconds, 0.0, words, latency.source)
