"""Quality against what it costs: time saved, latency, KV cache, weights. Every variant is a point.

Where something stands in for skipped sublayers, the front without those variants is drawn too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.evals.finalists.front import front
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
    opened,
    trace_of,
)
from pipeline.report.quality import is_loss, length_of, loss_benchmark, quality, yardstick
from pipeline.report.rows import ArtefactResults, Collection
from pipeline.store.records import Latency
from pipeline.types import is_compensation

PLACE = 10
FRONTIER = {"dash": "dash", "width": 1, "color": GREY}


@dataclass(frozen=True, slots=True)
class Cost:
    """What is on the x axis.

    Attributes:
        of: its value in the latency at one length.
        decode: that latency is of one token behind so many, not of a prefill.
    """

    name: str
    words: str
    unit: str
    of: Callable[[Latency], float | None]
    decode: bool = False


LATENCY = Cost("latency", "latency", "median ms a pass", lambda row: row.p50)
DECODE = Cost("decode", "decode time", "median ms a decoded token", lambda row: row.p50, decode=True)
COSTS = (
    Cost("saved", "time saved", "% of the base's time saved", lambda row: row.improvement),
    LATENCY,
    DECODE,
    Cost("cache", "KV-cache bytes", "KV-cache bytes a token", lambda row: row.cache_bytes_per_token),
    Cost("weights", "weights", "MB of weights", lambda row: row.weight_mb),
)
LOSSES = (replace(LATENCY, name="loss"), replace(DECODE, name="loss-decode"))
"""Where the yardstick is a score, the token loss stands against these, too."""
Yardsticks = Mapping[str, str | None]
"""Model → the benchmark that its variants are compared by."""


def charts(collection: Collection) -> list[Chart]:
    """One chart for each cost; and the token loss against times, where a score is the yardstick."""
    models = collection.models()
    yardsticks = {model: yardstick(collection.artefacts_of(model)) for model in models}
    losses = {model: loss_benchmark(collection.artefacts_of(model)) for model in models}
    page = [_chart(collection, cost, yardsticks) for cost in COSTS]
    others = {model: by for model, by in losses.items() if by and by != yardsticks[model]}
    if others:
        charted = [_chart(collection, cost, {**dict.fromkeys(models), **others}) for cost in LOSSES]
        page += [chart for chart in charted if not chart.gap]  # the charts of quality name the commands
    return page


def _chart(collection: Collection, cost: Cost, yardsticks: Yardsticks) -> Chart:
    groups = _points(collection, cost, yardsticks)
    data = [_trace(*key, points) for key, points in groups.items()]
    gap = None
    if not data:
        option = " --decode" if cost.decode else ""
        command = f"`pipeline bench GRAPH…{option} --tasks smoke`"
        gap = f"not run: needs a bench and a score of the same graphs ({command})"
    lower = {model for model, by in yardsticks.items() if by and is_loss(collection.artefacts_of(model), by)}
    for model in dict.fromkeys(model for model, _, _ in groups):
        data += _fronts(groups, model, cost.name == "saved", model in lower)
    # The paper's points are averages: beside another benchmark they would say nothing.
    if data and cost.name == "saved" and "average" in yardsticks.values():
        data += _papers_points()
    caption = _caption(cost, yardsticks, lower, any(form for _, _, form in groups), _has_quantised(groups))
    of_loss = lower and all(model in lower or not by for model, by in yardsticks.items())
    layout = layout_of(cost.unit, "100 × loss over log V" if of_loss else "score, %")
    what = "Loss" if cost in LOSSES else "Quality"
    return Chart(
        f"pareto-{cost.name}", f"{what} against {cost.words}", caption, {"data": data, "layout": layout}, gap
    )


def _caption(
    cost: Cost, yardsticks: Yardsticks, lower: set[str], compensated: bool, has_quantised: bool
) -> str:
    measures = ", ".join(dict.fromkeys(by for by in yardsticks.values() if by))
    better = "Down is better for a loss" if lower else "Up is better"
    caption = (
        f"{better}: {measures or 'scores'} in %, with its standard error. Every variant is a point, "
        "the star is the base; on the dashed line nothing is both better and cheaper."
    )
    if compensated:
        caption += " Open marks are compensated variants; the dotted line is the front without them."
    if cost.name == "saved" and has_quantised:
        caption += " Of quantised weights it is what they save of the base with the checkpoint's own."
    if cost.name == "saved":
        caption += " Diamonds are the points of Tyukin et al. (tables 1-3 and 9; 100 tokens, their device)."
    return caption


def _points(
    collection: Collection, cost: Cost, yardsticks: Yardsticks
) -> dict[tuple[str, str, str], list[Point]]:
    """(model, kind, quantisation and compensation or '') → cost and quality of those that have both."""
    lengths = {model: length_of(collection.artefacts_of(model), cost.decode) for model in collection.models()}
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for (model, kind), artefacts in by_kind(collection.artefacts).items():
        by = yardsticks[model] or ""
        for artefact in artefacts:
            x, own = _cost(artefact, cost, lengths[model]), quality(artefact, by)
            if x is not None and own is not None:
                spread = "" if own.stderr is None else f" ±{own.stderr:.1f}"
                score = f"{by} {own.value:.1f}{spread}"
                words = f"{artefact.model} {artefact.name}: {score}, {x:,.1f} {cost.unit}"
                point = Point(x, own.value, words, own.source, own.stderr)
                form = ", ".join(filter(None, (artefact.quantisation, artefact.compensation)))
                groups.setdefault((model, kind, form), []).append(point)
    return groups


def _trace(model: str, kind: str, form: str, points: list[Point]) -> Trace:
    if not form:
        return trace_of(points, Series.of(model, kind))
    series = Series.of(model, kind, f", {form}")
    return trace_of(points, replace(series, symbol=opened(series.symbol)))


def _cost(artefact: ArtefactResults, cost: Cost, length: int | None) -> float | None:
    latency = artefact.latency(length, cost.decode) if length else None
    if latency is None:
        return None
    if cost.name == "saved" and artefact.quantisation:  # a front of two bases would say nothing
        return latency.record.over_plain.improvement if latency.record.over_plain else None
    return 0.0 if cost.name == "saved" and artefact.variant == "base" else cost.of(latency.record)


def _fronts(
    groups: dict[tuple[str, str, str], list[Point]], model: str, saved: bool, lower: bool
) -> list[Trace]:
    """The front of a model, and the one without compensated or quantised variants where there are some.

    Args:
        groups: as `_points` gives them.
        model: whose.
        saved: whether more of the cost is better.
        lower: whether less of the quality is better.
    """
    own = [(form, p) for (of, _, form), points in groups.items() if of == model for p in points]
    plain = [p for form, p in own if not form]
    fronts = [_front([p for _, p in own], model, saved, lower)]
    if len(plain) < len(own):
        names = "compensation and quantisation" if _has_quantised(groups) else "compensation"
        dotted = {"name": f"frontier without {names}", "line": {**FRONTIER, "dash": "dot"}}
        fronts.append(_front(plain, model, saved, lower) | dotted)
    return fronts


def _has_quantised(groups: Iterable[tuple[str, str, str]]) -> bool:
    return any(not is_compensation(form) for _, _, form in groups if form)


def _front(points: list[Point], model: str, saved: bool, lower: bool) -> Trace:
    """The points that no other point beats on both axes, joined."""
    ways = (-1 if saved else 1, 1 if lower else -1)
    costs = [(ways[0] * p.x, ways[1] * p.y) for p in points]
    kept = sorted({cost for cost, is_on in zip(costs, front(costs), strict=True) if is_on})
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [ways[0] * x for x, _ in kept],
        "y": [ways[1] * y for _, y in kept],
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
