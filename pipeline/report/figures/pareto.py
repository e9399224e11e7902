"""Quality against what it costs: time saved, latency, KV cache, weights. Every variant is a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.report import papers
from pipeline.report.charts import (
    GREY,
    LABELS,
    STYLE,
    Chart,
    Point,
    Series,
    Trace,
    by_kind,
    layout_of,
    trace_of,
)
from pipeline.report.quality import length_of, quality, yardstick
from pipeline.report.rows import ArtefactResults, Collection
from pipeline.store.records import Latency

PLACE = 10
FRONTIER = {"dash": "dash", "width": 1, "color": GREY}


@dataclass(frozen=True, slots=True)
class Cost:
    """What is on the x axis."""

    name: str
    words: str
    unit: str
    of: Callable[[Latency], float | None]


COSTS = (
    Cost("saved", "time saved", "% of the base's time saved", lambda row: row.improvement),
    Cost("latency", "latency", "median ms a pass", lambda row: row.p50),
    Cost("cache", "KV-cache bytes", "KV-cache bytes a token", lambda row: row.cache_bytes_per_token),
    Cost("weights", "weights", "MB of weights", lambda row: row.weight_mb),
)


def charts(collection: Collection) -> list[Chart]:
    """One chart for each cost."""
    return [_chart(collection, cost) for cost in COSTS]


def _chart(collection: Collection, cost: Cost) -> Chart:
    yardsticks = {model: yardstick(collection.artefacts_of(model)) for model in collection.models()}
    data = [
        trace_of(points, Series.of(model, kind))
        for (model, kind), points in _points(collection, cost, yardsticks).items()
    ]
    gap = None
    if not data:
        gap = "not run: needs a bench and a score of the same graphs (`pipeline bench GRAPH… --tasks smoke`)"
    models = dict.fromkeys(trace["meta"]["model"] for trace in data)
    data += [_frontier(data, model, more_is_better=cost.name == "saved") for model in models]
    # The paper's points are averages: beside another benchmark they would say nothing.
    if data and cost.name == "saved" and "average" in yardsticks.values():
        data += _papers_points()
    measures = ", ".join(dict.fromkeys(by for by in yardsticks.values() if by))
    caption = (
        f"Up is better: {measures or 'scores'} in %, with its standard error. Every variant is a point, "
        "the star is the base; on the dashed line nothing is both better and cheaper."
    )
    if cost.name == "saved":
        caption += " Diamonds are the points of Tyukin et al. (tables 1-3 and 9; 100 tokens, their device)."
    layout = layout_of(cost.unit, "score, %")
    title = f"Quality against {cost.words}"
    return Chart(f"pareto-{cost.name}", title, caption, {"data": data, "layout": layout}, gap)


def _points(
    collection: Collection, cost: Cost, yardsticks: dict[str, str | None]
) -> dict[tuple[str, str], list[Point]]:
    """(model, kind) → cost and quality of each artefact that has both."""
    lengths = {model: length_of(collection.artefacts_of(model)) for model in collection.models()}
    groups: dict[tuple[str, str], list[Point]] = {}
    for key, artefacts in by_kind(collection.artefacts).items():
        by = yardsticks[key[0]] or ""
        for artefact in artefacts:
            x, own = _cost(artefact, cost, lengths[key[0]]), quality(artefact, by)
            if x is not None and own is not None:
                spread = "" if own.stderr is None else f" ±{own.stderr:.1f}"
                score = f"{by} {own.value:.1f}{spread}"
                words = f"{artefact.model} {artefact.name}: {score}, {x:,.1f} {cost.unit}"
                groups.setdefault(key, []).append(Point(x, own.value, words, own.source, own.stderr))
    return groups


def _cost(artefact: ArtefactResults, cost: Cost, length: int | None) -> float | None:
    latency = artefact.latency(length) if length else None
    if latency is None:
        return None
    return 0.0 if cost.name == "saved" and artefact.variant == "base" else cost.of(latency.record)


def _frontier(data: list[Trace], model: str, more_is_better: bool) -> Trace:
    """The points of a model that no other point beats on both axes, joined."""
    points = [
        (x, y)
        for trace in data
        if trace["meta"]["model"] == model
        for x, y in zip(trace["x"], trace["y"], strict=True)
    ]
    points.sort(key=lambda p: (-p[0] if more_is_better else p[0], -p[1]))
    kept: list[tuple[float, float]] = []
    for x, y in points:
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in kept],
        "y": [y for _, y in kept],
        "hoverinfo": "skip",
        "line": FRONTIER,
        "showlegend": False,
        "name": "frontier",
        "meta": {"model": model, "kind": ""},
    }


def _papers_points() -> list[Trace]:
    """Tyukin et al., Llama-2-7B: average against % saved at 100 tokens, the last sublayers left out."""
    saved = {row["kept"]: row for row in papers.latencies() if row["table"] == "9"}
    traces = []
    for kind in ("attn", "mlp", "block"):
        label = LABELS[kind]
        rows = [r for r in papers.scores() if (r["kind"], r["select"], r["model"]) == (kind, "last", "7B")]
        points = [
            Point(
                x=float(saved[r["kept"]][f"{kind}_saved"] or 0),
                y=float(r["average"]),
                words=f"Tyukin et al., Llama-2-7B, {r['kept']} % of {label} kept: average {r['average']}",
                source=None,
            )
            for r in rows
        ]
        series = Series(
            f"Tyukin et al. 7B, {label}", "Tyukin et al.", kind, STYLE[kind][0], symbol="diamond-open"
        )
        traces.append(trace_of(points, series))
    return traces
