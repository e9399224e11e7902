"""Probes against the fraction left out: which ability goes first (as Gromov et al. 2024, Figure 6, asks).

A panel for each kind of sublayer, a curve for each probe. A probe is any benchmark whose name begins with
`probe-`. Of several variants of one size one counts for all probes, that of the best mean: if each probe took
its own best, abilities would be compared that no one variant has. Mended variants are left to `fraction`.
"""

from __future__ import annotations

import html
import itertools
import math
import shlex
import statistics
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from pipeline.report import collect, drawing
from pipeline.report.charts import GREY, LABELS, Chart, Point, Series, Trace, layout_of, trace_of
from pipeline.report.drawing import Drawing
from pipeline.report.figures.fraction import FractionPoint, points_of
from pipeline.report.figures.rules import COLOURS
from pipeline.report.rows import Collection
from pipeline.store import Project
from pipeline.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = 45
PREFIX = "probe-"
PANELS = ("attn", "mlp", "block")
SYMBOLS = ("circle", "square", "triangle-up", "x", "diamond", "cross", "star")
FALL = 2.0
"""Standard errors of the difference by which a probe is below base where it has fallen."""


@dataclass(frozen=True, slots=True)
class ProbeCurve:
    """One probe of one kind of variant.

    Attributes:
        name: of the probe, without its prefix.
        points: base, and of each size the variant that counts, in the order of their sizes.
    """

    kind: str
    name: str
    points: list[FractionPoint]

    @property
    def chance(self) -> float | None:
        """What guessing gives, %."""
        chance = self.points[0].result.score.chance
        return None if chance is None else 100 * chance

    @property
    def fall(self) -> float | None:
        """The smallest % left out at which it is `FALL` standard errors below base; None where at none."""
        base, *variants = self.points
        for point in variants:
            spread = math.hypot(base.stderr or 0.0, point.stderr or 0.0)
            if base.value - point.value > FALL * spread:
                return point.percent
        return None


def curves_of(collection: Collection, model: str) -> list[ProbeCurve]:
    """The curves of one model, panel by panel; none of a kind or a probe without both base and a variant."""
    points = _points(collection, model)
    curves = list[ProbeCurve]()
    for kind in PANELS:
        counted = _counted(points, kind)
        for benchmark, own in points.items():
            base = [p for p in own if p.artefact.kind == "base"]
            sizes = sorted((p for p in own if p.artefact.variant in counted), key=lambda p: p.percent)
            if base and sizes:
                curves.append(ProbeCurve(kind, benchmark.removeprefix(PREFIX), [base[0], *sizes]))
    return curves


def _counted(points: dict[str, list[FractionPoint]], kind: str) -> set[str]:
    """Of each size the variant of a kind with most of the probes, and of those that of the best mean."""
    values = dict[tuple[float, str], list[float]]()
    for p in itertools.chain(*points.values()):
        if p.artefact.kind == kind:
            values.setdefault((p.percent, p.artefact.variant), []).append(p.value)
    worst_first = sorted(values, key=lambda one: (len(values[one]), statistics.fmean(values[one])))
    return set(dict(worst_first).values())


def _points(collection: Collection, model: str) -> dict[str, list[FractionPoint]]:
    """Probe → its scores of variants as they were cut, of the precision and runner that most have."""
    names = {one.score.benchmark for a in collection.artefacts_of(model) for one in a.scores}
    points = {
        name: [p for p in points_of(collection, name) if p.artefact.model == model and not p.artefact.mended]
        for name in sorted(names)
        if name.startswith(PREFIX)
    }
    runners = Counter((p.artefact.precision, p.artefact.runner) for own in points.values() for p in own)
    if not runners:
        return {}
    most = max(runners, key=lambda runner: (runners[runner], runner))
    return {
        name: [p for p in own if (p.artefact.precision, p.artefact.runner) == most]
        for name, own in points.items()
    }


def first_falls(curves: list[ProbeCurve]) -> str:
    """Which probe goes first, kind by kind, as a sentence."""
    words = []
    for kind in dict.fromkeys(curve.kind for curve in curves):
        falls = {curve.name: curve.fall for curve in curves if curve.kind == kind}
        known = [percent for percent in falls.values() if percent is not None]
        first = [name for name, percent in falls.items() if known and percent == min(known)]
        what = f"{' and '.join(first)} at {min(known):.1f} %" if known else "none"
        words.append(f"{LABELS[kind]} {what}")
    return (
        f"First to fall more than {FALL:.0f} standard errors of the difference below base, by what is left "
        f"out: {'; '.join(words)}."
    )


# ---- the page ---------------------------------------------------------------------------------------------


def charts(collection: Collection) -> list[Chart]:
    """A chart for each model whose probes have been scored."""
    return [
        _chart(collection, model, number)
        for number, model in enumerate(collection.models())
        if any(s.score.benchmark.startswith(PREFIX) for a in collection.artefacts_of(model) for s in a.scores)
    ]


def _chart(collection: Collection, model: str, number: int) -> Chart:
    curves = curves_of(collection, model)
    gap = "not run: needs `pipeline score … --tasks probes` of base and of a variant of it"
    return Chart(
        name=f"probes-by-kind-{number}",
        title=f"{model}: which ability goes first",
        caption="Accuracy of each probe, %, with its standard error; the dashed line is guessing. "
        + (first_falls(curves) if curves else ""),
        figure={"data": _traces(model, curves), "layout": _layout(curves)},
        gap=None if curves else gap,
    )


def _styles(curves: list[ProbeCurve]) -> dict[str, tuple[str, str]]:
    """Probe → colour and marker."""
    names = dict.fromkeys(curve.name for curve in curves)
    return dict(zip(names, zip(cycle(COLOURS), cycle(SYMBOLS), strict=False), strict=False))


def _panels(curves: list[ProbeCurve]) -> dict[str, str]:
    """Kind → the number of its axis, as Plotly writes it: '', '2', '3'."""
    kinds = dict.fromkeys(curve.kind for curve in curves)
    return {kind: str(number) if number > 1 else "" for number, kind in enumerate(kinds, 1)}


def _traces(model: str, curves: list[ProbeCurve]) -> list[Trace]:
    styles, panels, named, traces = _styles(curves), _panels(curves), set[str](), []
    for curve in curves:
        points = [Point(p.percent, p.value, p.words, p.result.source, p.stderr) for p in curve.points]
        series = Series(f"{model}, {curve.name}", model, curve.kind, *styles[curve.name], lines=True)
        own = {"xaxis": f"x{panels[curve.kind]}", "legendgroup": html.escape(curve.name)}
        traces.append(trace_of(points, series) | own | {"showlegend": curve.name not in named})
        named.add(curve.name)
    return traces


def _layout(curves: list[ProbeCurve]) -> dict[str, object]:
    panels = _panels(curves)
    axes, titles, shapes = {}, [], []
    width = 1 / max(1, len(panels))
    line = {"dash": "dash", "width": 1, "color": GREY}
    for number, (kind, axis) in enumerate(panels.items()):
        left, right = number * width, (number + 1) * width - 0.04
        axes[f"xaxis{axis}"] = {"domain": [left, right], "title": {"text": "% left out"}, "anchor": "y"}
        place = {"xref": "paper", "yref": "paper", "x": (left + right) / 2, "y": 1, "yanchor": "bottom"}
        titles.append({"text": LABELS[kind], "showarrow": False, **place})
        for chance in sorted({c.chance for c in curves if c.kind == kind and c.chance is not None}):
            ends = {"xref": f"x{axis} domain", "x0": 0, "x1": 1, "y0": chance, "y1": chance}
            shapes.append({"type": "line", "line": line, **ends})
    return {**layout_of("% left out", "accuracy, %", annotations=titles, shapes=shapes), **axes}


# ---- the files --------------------------------------------------------------------------------------------


def draw(model: str, project: Project) -> Drawing:
    """A panel for each kind of sublayer.

    Raises:
        UserError: no probe of base and of a variant has been scored.
    """
    from matplotlib.figure import Figure

    curves = curves_of(collect.gather([model], project), model)
    if not curves:
        raise UserError(
            f"no probe of base and of a variant of {model} has been scored: run `pipeline score "
            f"graphs/{shlex.quote(model)}/*.fp32.onnx --tasks probes`"
        )
    kinds = list(_panels(curves))
    figure = Figure(figsize=(3.6 * len(kinds) + 1, 4.4), layout="constrained")
    figure.suptitle(f"{model}: which ability goes first", fontsize=11)
    plots = dict(zip(kinds, figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], strict=True))
    for kind, plot in plots.items():
        plot.set_title(LABELS[kind], fontsize=10)
        plot.set_xlabel("left out, %")
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25)
    styles = dict(zip(_styles(curves), cycle(drawing.SERIES), strict=False))
    rows = [row for curve in curves for row in _plot(plots[curve.kind], curve, styles[curve.name])]
    for kind, chance in sorted({(c.kind, c.chance) for c in curves if c.chance is not None}):
        plots[kind].axhline(chance, color="black", linewidth=0.8, linestyle="--")
        plots[kind].text(0, chance, "chance", va="bottom", fontsize=8)
    plots[kinds[0]].set_ylabel("accuracy, %")
    plots[kinds[0]].legend(frameon=False)
    return Drawing(figure, ("kind", "probe", "variant", "percent", "value", "stderr", "chance"), rows)


def _plot(plot: Axes, curve: ProbeCurve, style: dict[str, Any]) -> list[tuple[object, ...]]:
    """Draws one curve, and gives its rows of the table."""
    numbers = [(p.percent, p.value, p.stderr or 0.0) for p in curve.points]
    x, y, errors = ([*column] for column in zip(*numbers, strict=True))
    plot.errorbar(x, y, yerr=errors, capsize=2, label=curve.name, **style)
    own = (curve.kind, curve.name)
    return [
        (*own, point.artefact.variant, *number, curve.chance)
        for point, number in zip(curve.points, numbers, strict=True)
    ]
