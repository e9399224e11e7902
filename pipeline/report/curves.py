"""Charts of curves: quality against the fraction left out, and how alike the stream is before and after what could be left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipeline.calib import similarity
from pipeline.report import papers
from pipeline.report.charts import LABELS, STYLE, Chart, Point, layout_of, trace_of
from pipeline.report.rows import Artefact, Findings, Statistics

RULES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")


def charts(found: Findings) -> list[Chart]:
    """Against the fraction, by kind and by rule; then the statistics of every model."""
    return [*_against_fraction(found), *_rules(found), *_similarity(found)]


def _against_fraction(found: Findings) -> list[Chart]:
    """A chart for each benchmark, before and after healing (Gromov et al., Figures 2, 3 and 6)."""
    titles = {s.benchmark: s.title for a in found.artefacts for s in a.scores}
    return [
        _fraction_chart(found, name, title, lambda a: (LABELS[a.kind] + _healed(a),), "")
        for name, title in sorted(titles.items())
    ]


def _rules(found: Findings) -> list[Chart]:
    """The same by the rule that chose (Gromov et al., Figure 5), where one is known."""
    titles = {s.benchmark: s.title for a in found.artefacts for s in a.scores if a.selectors}

    def rules(a: Artefact) -> tuple[str, ...]:
        return tuple(rule + _healed(a) for rule in sorted(a.selectors))

    return [_fraction_chart(found, name, title, rules, "rules-") for name, title in sorted(titles.items())]


def _healed(artefact: Artefact) -> str:
    return ", healed" if artefact.adapter else ""


Groups = Callable[[Artefact], tuple[str, ...]]
"""Artefact → the curves that it is a point of."""


def _fraction_chart(found: Findings, benchmark: str, title: str, groups: Groups, prefix: str) -> Chart:
    is_loss = any(s.is_loss for a in found.artefacts for s in a.scores if s.benchmark == benchmark)
    data, models, series = [], dict[str, None](), _series(found, benchmark, is_loss, groups)
    rules = sorted({group.removesuffix(", healed") for _, _, group in series})
    for (model, kind, group), points in sorted(series.items()):
        colour, symbol = STYLE[kind]
        colour = RULES[rules.index(group.removesuffix(", healed")) % len(RULES)] if prefix else colour
        name = f"{model}, {group}" if not prefix else f"{model}, {LABELS[kind]}, {group}"
        points.sort(key=lambda p: p.x)
        curve = len({p.x for p in points}) == len(points)  # several variants of one size are no curve
        trace = trace_of(points, name, model, kind, colour, symbol, lines=curve)
        data.append(
            {**trace, "line": {"color": colour, "dash": "dot" if "healed" in group else "solid", "width": 1}}
        )
        models[model] = None
    bands = [band for model in models if benchmark == "mmlu" and (band := papers.transition(model))]
    guessing = _guessing(benchmark, is_loss)
    note = "lower is better; 1 is a uniform guess" if is_loss else "%, with its standard error"
    caption = f"{title}, {note}." + (" The dotted line is guessing." if guessing else "")
    caption += " The grey band is where MMLU falls to chance in Gromov et al., section 4.1." if bands else ""
    how = "by the rule that chose what is left out" if prefix else "by what is left out"
    layout = layout_of("% left out", title, shapes=_shapes(guessing, bands))
    gap = None if data else "not drawn: how many layers these models have is not known here"
    return Chart(
        f"{prefix}{benchmark}",
        f"{title} against the fraction left out, {how}",
        caption,
        {"data": data, "layout": layout},
        gap,
    )


def _series(
    found: Findings, benchmark: str, is_loss: bool, groups: Groups
) -> dict[tuple[str, str, str], list[Point]]:
    """(model, kind, group) → points: % left out, and the score in % (a loss as it is)."""
    scale, digits = (1.0, 4) if is_loss else (100.0, 2)
    series: dict[tuple[str, str, str], list[Point]] = {}
    for a in found.artefacts:
        score, fraction = a.score(benchmark), a.fraction
        if score is None or fraction is None:
            continue
        spread = None if score.stderr is None else scale * score.stderr
        words = f"{a.model} {a.name}: {scale * score.value:.{digits}f}" + (
            "" if spread is None else f" ±{spread:.{digits}f}"
        )
        point = Point(100 * fraction, scale * score.value, words, score.source, spread)
        for group in groups(a):
            series.setdefault((a.model, a.kind, group), []).append(point)
    return series


def _shapes(guessing: list[float], bands: list[tuple[float, float]]) -> list[dict[str, Any]]:
    line = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "line": {"dash": "dot", "width": 1, "color": "#7f7f7f"},
    }
    band = {
        "type": "rect",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "opacity": 0.15,
        "line": {"width": 0},
        "fillcolor": "#7f7f7f",
    }
    return [{**line, "y0": y, "y1": y} for y in guessing] + [
        {**band, "x0": low - 0.5, "x1": high + 0.5} for low, high in bands
    ]


def _guessing(benchmark: str, is_loss: bool) -> list[float]:
    chance = 1.0 if is_loss else papers.chance(benchmark)
    return [] if chance is None else [chance]


# ---- similarity -----------------------------------------------------------------------------------------------------


def _similarity(found: Findings) -> list[Chart]:
    made: list[Chart] = []
    for k, told in enumerate(found.statistics):
        made += [
            _cosines(told, k),
            *([_curves(told, k), _heat(told, k)] if told.distances is not None else []),
        ]
        if told.gap:
            made.append(
                Chart(
                    f"angular-{k}",
                    f"{told.model}: angular distance",
                    "",
                    {"data": [], "layout": {}},
                    told.gap,
                )
            )
    return made


def _cosines(told: Statistics, k: int) -> Chart:
    data = []
    for name, kind in (("layer", "block"), ("attn", "attn"), ("mlp", "mlp")):
        values = told.record[f"cosine_{name}"]
        points = [Point(i, v, f"layer {i}: {v:.4f}", told.source) for i, v in enumerate(values)]
        data.append(
            trace_of(
                points,
                "whole layer" if name == "layer" else LABELS[kind],
                told.model,
                kind,
                *STYLE[kind],
                lines=True,
            )
        )
    caption = "Near 1: the stream hardly changes, so this sublayer is a candidate (Tyukin et al., Figure 1)."
    layout = layout_of("layer", "cosine similarity")
    return Chart(
        f"cosine-{k}",
        f"{told.model}: stream before and after each sublayer",
        caption,
        {"data": data, "layout": layout},
    )


def _curves(told: Statistics, k: int) -> Chart:
    d, layers = told.distances, len(told.distances) - 1
    data = []
    for n in range(1, layers):
        points = [
            Point(i, float(d[i, i + n]), f"block of {n} from layer {i}: d {d[i, i + n]:.4f}", told.source)
            for i in range(layers - n + 1)
        ]
        shade = 0.25 + 0.75 * n / layers
        trace = trace_of(
            points, f"n = {n}", told.model, "block", f"rgba(0,158,115,{shade:.2f})", "circle", lines=True
        )
        data.append({**trace, "mode": "lines", "line": {"width": 1, "color": trace["marker"]["color"]}})
    caption = "One curve a block size n; its lowest point is the block that the rule angular leaves out (Gromov et al., Figure 1c)."
    layout = layout_of("first layer of the block", "angular distance d(ℓ, n)", showlegend=False)
    return Chart(
        f"angular-{k}", f"{told.model}: angular distance of blocks", caption, {"data": data, "layout": layout}
    )


def _heat(told: Statistics, k: int) -> Chart:
    layers = len(told.distances) - 1
    curves = similarity.block_curves(told.distances).round(4).tolist()
    shown = [
        [value if math.isfinite(value) else None for value in row] for row in curves
    ]  # JSON knows no NaN
    trace = {
        "type": "heatmap", "z": shown, "y": list(range(1, layers)), "x": list(range(layers)), "colorscale": "Viridis", "reversescale": True,
        "colorbar": {"title": {"text": "distance"}, "thickness": 12}, "hoverongaps": False, "meta": {"model": told.model, "kind": "block"},
        "hovertemplate": "block of %{y} from layer %{x}: %{z}<extra></extra>",
    }  # fmt: skip
    caption = (
        "Of each block size n: 0 is the nearest block (light), 1 the farthest (Gromov et al., Figure 4)."
    )
    return Chart(
        f"heatmap-{k}", f"{told.model}: which blocks change the stream least", caption,
        {"data": [trace], "layout": layout_of("first layer of the block", "block size n")},
    )  # fmt: skip


# ---- the papers' figures --------------------------------------------------------------------------------------------

FIGURES = (
    (
        "Tyukin et al., Figure 1: cosine similarity of neighbouring layers",
        ("cosine-",),
        "`pipeline calibrate MODEL`",
    ),
    (
        "Gromov et al., Figure 1c: angular distance of every block",
        ("angular-",),
        "`pipeline calibrate MODEL`",
    ),
    (
        "Gromov et al., Figure 2: MMLU against the fraction of blocks left out",
        ("mmlu",),
        "`pipeline score … --tasks mmlu`",
    ),
    (
        "Gromov et al., Figure 3: C4 loss before and after healing",
        ("c4-loss",),
        "`pipeline score … --tasks c4-loss`",
    ),
    (
        "Gromov et al., Figure 4: heat map of the angular distance",
        ("heatmap-",),
        "`pipeline calibrate MODEL`",
    ),
    (
        "Gromov et al., Figure 5, MMLU: angular beside last-but-final",
        ("rules-mmlu",),
        "`pipeline score … --tasks mmlu`",
    ),
    (
        "Gromov et al., Figure 5, BoolQ: angular beside last-but-final",
        ("rules-boolq",),
        "`pipeline score … --tasks boolq`",
    ),
    (
        "Gromov et al., Figure 5, C4 loss: angular beside last-but-final",
        ("rules-c4-loss",),
        "`pipeline score … --tasks c4-loss`",
    ),
    *(
        (f"Gromov et al., Figure 6, {name}", (name,), f"`pipeline score … --tasks {name}`")
        for name in ("qmsum", "cot-mmlu", "boolq", "gsm8k", "hellaswag")
    ),
)


def figures(drawn: list[Chart]) -> list[tuple[str, str, str | None]]:
    """(the papers' figure, what there is of it, the chart's name or None): a gap names the command that fills it."""
    made: list[tuple[str, str, str | None]] = []
    for title, names, command in FIGURES:
        mine = [
            c for c in drawn if any(c.name == n or (n.endswith("-") and c.name.startswith(n)) for n in names)
        ]
        there = [c for c in mine if not c.gap]
        made += [(title, c.title, c.name) for c in there]
        if not there:
            made.append((title, mine[0].gap if mine and mine[0].gap else f"not run: {command}", None))
    return made
