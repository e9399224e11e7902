"""Charts as Plotly figures in plain JSON. Each trace says in `meta` of which model and kind it is: that is what the filter reads.

Kinds differ in colour (Okabe and Ito's palette), and in marker, so that they are told apart without colour.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.report import papers, recommend
from pipeline.report.rows import Artefact, Findings, Source

STYLE = {
    "base": ("#7f7f7f", "star"),
    "attn": ("#0072b2", "circle"),
    "mlp": ("#d55e00", "square"),
    "block": ("#009e73", "triangle-up"),
    "mixed": ("#cc79a7", "cross"),
}
MANY = 1000
"""Points from which WebGL draws a trace; below, SVG does: a browser holds few WebGL contexts."""
LABELS = {"base": "base", "attn": "attention", "mlp": "MLP", "block": "block", "mixed": "attention and MLP"}


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, or why there is none.

    Attributes:
        figure: {"data": [...], "layout": {...}}, as plotly.js and plotly.graph_objects take it.
        gap: what has not been measured, with the command that does.
    """

    name: str
    title: str
    caption: str
    figure: dict[str, Any]
    gap: str | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One mark: where it lies, how sure it is, what it says, and the file behind it."""

    x: float
    y: float
    words: str
    source: Source | None
    spread: float | None = None


def charts(found: Findings) -> list[Chart]:
    """Quality against what it costs, and the latencies."""
    return [*_pareto(found), _ceiling(found), _spread(found)]


def trace_of(
    points: list[Point], name: str, model: str, kind: str, colour: str, symbol: str, lines: bool = False
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "scattergl" if len(points) > MANY else "scatter",
        "mode": "lines+markers" if lines else "markers",
        "name": html.escape(name),
        "x": [p.x for p in points],
        "y": [p.y for p in points],
        "text": [html.escape(p.words) for p in points],
        "customdata": [p.source.copy if p.source else None for p in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "symbol": symbol, "size": 14 if kind == "base" else 9},
        "meta": {"model": model, "kind": kind},
    }
    if (
        any(p.spread is not None for p in points) and len(points) <= MANY
    ):  # thousands of bars hide what they qualify
        made["error_y"] = {
            "type": "data",
            "array": [p.spread or 0 for p in points],
            "thickness": 1,
            "width": 2,
        }
    return made


def layout_of(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "hovermode": "closest", **more}


def by_kind(artefacts: Iterable[Artefact]) -> dict[tuple[str, str], list[Artefact]]:
    made: dict[tuple[str, str], list[Artefact]] = {}
    for artefact in artefacts:
        made.setdefault((artefact.model, artefact.kind), []).append(artefact)
    return made


# ---- quality against what it costs ----------------------------------------------------------------------------------


def _pareto(found: Findings) -> list[Chart]:
    lengths = {m: recommend.length_of([a for a in found.artefacts if a.model == m]) for m in found.models()}
    axes: list[tuple[str, str, str, Callable[[Artefact], float | None]]] = [
        ("saved", "time saved", "% of the base's time saved", lambda a: _timed(a, lengths, "saved")),
        ("latency", "latency", "median ms a pass", lambda a: _timed(a, lengths, "p50")),
        ("cache", "KV-cache bytes", "KV-cache bytes a token", lambda a: _timed(a, lengths, "cache_bytes")),
        ("weights", "weights", "MB of weights", lambda a: _timed(a, lengths, "weight_mb")),
    ]
    return [_pareto_chart(found, *axis) for axis in axes]


def _timed(artefact: Artefact, lengths: dict[str, int | None], what: str) -> float | None:
    length = lengths[artefact.model]
    time = artefact.time(length) if length else None
    if time is None:
        return None
    return 0.0 if what == "saved" and artefact.variant == "base" else getattr(time, what)


def _pareto_chart(
    found: Findings, name: str, words: str, x_title: str, x_of: Callable[[Artefact], float | None]
) -> Chart:
    by = {m: recommend.yardstick([a for a in found.artefacts if a.model == m]) for m in found.models()}
    data = []
    for (model, kind), mine in by_kind(found.artefacts).items():
        points = []
        for a in mine:
            x, told = x_of(a), recommend.quality(a, by[model] or "")
            if x is not None and told is not None:
                spread = "" if told.stderr is None else f" ±{told.stderr:.1f}"
                text = f"{a.model} {a.name}: {by[model]} {told.value:.1f}{spread}, {x:,.1f} {x_title}"
                points.append(Point(x, told.value, text, told.source, told.stderr))
        if points:
            data.append(trace_of(points, f"{model}, {LABELS[kind]}", model, kind, *STYLE[kind]))
    gap = (
        None
        if data
        else "not run: needs a bench and a score of the same graphs (`pipeline bench GRAPH… --tasks smoke`)"
    )
    shown = dict.fromkeys(trace["meta"]["model"] for trace in data)
    data += [_frontier(data, model, more_is_better=name == "saved") for model in shown]
    comparable = (
        name == "saved" and "average" in by.values()
    )  # a point of theirs beside another benchmark would say nothing
    if data and comparable:
        data += _papers_points()
    used = ", ".join(dict.fromkeys(b for b in by.values() if b))
    return Chart(
        name=f"pareto-{name}",
        title=f"Quality against {words}",
        caption=f"Up is better: {used or 'scores'} in %, with its standard error. Every variant is a point, the star is the base; "
        "on the dashed line nothing is both better and cheaper."
        + (
            " Diamonds are the points of Tyukin et al. (tables 1-3 and 9; 100 tokens, their device)."
            if name == "saved"
            else ""
        ),
        figure={"data": data, "layout": layout_of(x_title, "score, %")},
        gap=gap,
    )


def _frontier(data: list[dict[str, Any]], model: str, more_is_better: bool) -> dict[str, Any]:
    """The points of a model that no other one beats on both axes, joined."""
    points = [
        (x, y) for t in data if t["meta"]["model"] == model for x, y in zip(t["x"], t["y"], strict=True)
    ]
    points.sort(key=lambda p: (-p[0] if more_is_better else p[0], -p[1]))
    kept: list[tuple[float, float]] = []
    for x, y in points:
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    made = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in kept],
        "y": [y for _, y in kept],
        "hoverinfo": "skip",
    }
    line = {"dash": "dash", "width": 1, "color": "#7f7f7f"}
    return {
        **made,
        "line": line,
        "showlegend": False,
        "name": "frontier",
        "meta": {"model": model, "kind": ""},
    }


def _papers_points() -> list[dict[str, Any]]:
    """Tyukin et al., Llama-2-7B: average against % saved at 100 tokens, the last sublayers left out."""
    saved = {row["kept"]: row for row in papers.latencies() if row["table"] == "9"}
    made = []
    for kind in ("attn", "mlp", "block"):
        rows = [r for r in papers.scores() if (r["kind"], r["select"], r["model"]) == (kind, "last", "7B")]
        points = [
            Point(
                float(saved[r["kept"]][f"{kind}_saved"] or 0), float(r["average"]),
                f"Tyukin et al., Llama-2-7B, {r['kept']} % of {LABELS[kind]} kept: average {r['average']}", None,
            )
            for r in rows
        ]  # fmt: skip
        trace = trace_of(
            points, f"Tyukin et al. 7B, {LABELS[kind]}", "Tyukin et al.", kind, STYLE[kind][0], "diamond-open"
        )
        made.append(trace)
    return made


# ---- latency --------------------------------------------------------------------------------------------------------


def _ceiling(found: Findings) -> Chart:
    data, edge = [], 0.0
    for (model, kind), mine in by_kind(found.artefacts).items():
        times = [
            (a, t)
            for a in mine
            for t in a.times
            if t.contestant == "artefact" and t.ceiling is not None and kind != "base"
        ]
        points = [
            Point(
                t.ceiling or 0, t.saved, f"{model} {a.name}, {_what(t.decode, t.length)}: {t.saved:.1f} % saved "
                f"[{t.interval[0]:.1f}, {t.interval[1]:.1f}], ceiling {t.ceiling:.1f} %", t.source, (t.interval[1] - t.interval[0]) / 2,
            )
            for a, t in times
        ]  # fmt: skip
        edge = max([edge, *(p.x for p in points)])
        if points:
            data.append(trace_of(points, f"{model}, {LABELS[kind]}", model, kind, *STYLE[kind]))
    if data:
        line = {
            "x": [0, edge * 1.1],
            "y": [0, edge * 1.1],
            "mode": "lines",
            "type": "scatter",
            "name": "ceiling",
            "hoverinfo": "skip",
        }
        data.append(
            {
                **line,
                "line": {"dash": "dash", "color": "#7f7f7f", "width": 1},
                "meta": {"model": "", "kind": ""},
            }
        )
    caption = "On the dashed line all that the removed work allows has been won; a point above it by more than its interval is a "
    return Chart(
        "ceiling", "Time saved against its ceiling", caption + "measurement bug, or time that is no counted work.",
        {"data": data, "layout": layout_of("ceiling, % of the time", "saved, % of the time")},
        None if data else "not run: needs `pipeline bench` of a variant",
    )  # fmt: skip


def _what(decode: bool, length: int) -> str:
    return f"{'decode on' if decode else 'prefill of'} {length} tokens"


def _spread(found: Findings) -> Chart:
    """p50, p90 and p99 of each artefact: the bench keeps these of its samples."""
    data = []
    for (model, kind), mine in by_kind(found.artefacts).items():
        rows = sorted(((a, t) for a in mine for t in a.times), key=lambda pair: pair[1].p50)
        for part, fade in (("p50", 1.0), ("p90", 0.6), ("p99", 0.3)):
            points = [
                Point(
                    getattr(t, part), t.length + (0.5 if t.decode else 0),
                    f"{model} {a.name} ({t.contestant}), {_what(t.decode, t.length)}: "
                    f"{part} {getattr(t, part):.1f} ms, {t.device}", t.source,
                )
                for a, t in rows
            ]  # fmt: skip
            if points:
                trace = trace_of(points, f"{model}, {LABELS[kind]}, {part}", model, kind, *STYLE[kind])
                trace["marker"] |= {
                    "opacity": fade,
                    "symbol": {"p50": "circle", "p90": "line-ns-open", "p99": "x-thin-open"}[part],
                }
                data.append({**trace, "y": [f"{_what(t.decode, t.length)}" for _, t in rows]})
    return Chart(
        "latency-spread", "Spread of the latencies", "Median (dot), p90 (bar) and p99 (cross) of the trusted samples, in ms.",
        {"data": data, "layout": layout_of("ms a pass", "", yaxis={"type": "category", "automargin": True})},
        None if data else "not run: needs `pipeline bench`",
    )  # fmt: skip
