"""Scores against the fraction left out, before and after healing (Gromov et al. 2024, Figures 2, 3 and 6).

Compensated variants are curves of their own, one for each form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.report import papers
from pipeline.report.charts import (
    GREY,
    LABELS,
    STYLE,
    Chart,
    Point,
    Series,
    Trace,
    layout_of,
    opened,
    trace_of,
)
from pipeline.report.figures import PaperFigure
from pipeline.report.rows import ArtefactResults, Collection, SourcedScore

PLACE = 40
BAND_EDGE = 0.5
"""% by which a band is drawn wider on each side, so that one of no width is seen."""
SHOWS = (
    PaperFigure(
        "gromov",
        "2",
        ": MMLU against the fraction of blocks left out",
        "mmlu",
        "`pipeline score … --tasks mmlu`",
    ),
    PaperFigure(
        "gromov", "3", ": C4 loss before and after healing", "c4-loss", "`pipeline score … --tasks c4-loss`"
    ),
    *(
        PaperFigure("gromov", "6", f", {name}", name, f"`pipeline score … --tasks {name}`")
        for name in ("qmsum", "cot-mmlu", "boolq", "gsm8k", "hellaswag")
    ),
)


@dataclass(frozen=True, slots=True)
class FractionPoint:
    """A variant's score of one benchmark.

    Attributes:
        percent: of the sublayers of its kind that are left out.
        value, stderr: in %; a loss as it is.
    """

    artefact: ArtefactResults
    result: SourcedScore
    percent: float
    value: float
    stderr: float | None

    @property
    def words(self) -> str:
        """'SmolLM2 attn24-31.fp32: 59.50 ±1.00'."""
        digits = 4 if self.result.score.is_loss else 2
        spread = "" if self.stderr is None else f" ±{self.stderr:.{digits}f}"
        return f"{self.artefact.model} {self.artefact.name}: {self.value:.{digits}f}{spread}"


@dataclass(frozen=True, slots=True)
class FractionCurve:
    """The points that one curve joins.

    Attributes:
        name: in the legend.
        colour: None for the kind's own.
        dash: as Plotly names it; `dash_of` its variants.
    """

    name: str
    model: str
    kind: str
    points: list[FractionPoint]
    colour: str | None
    dash: str

    def trace(self) -> Trace:
        """As Plotly draws it; several variants of one size make no curve."""
        colour, symbol = STYLE[self.kind]
        colour = self.colour or colour
        symbol = opened(symbol) if self.points[0].artefact.compensation else symbol
        points = [Point(p.percent, p.value, p.words, p.result.source, p.stderr) for p in self.points]
        is_curve = len({p.x for p in points}) == len(points)
        trace = trace_of(points, Series(self.name, self.model, self.kind, colour, symbol, is_curve))
        return {**trace, "line": {"color": colour, "dash": self.dash, "width": 1}}


def dash_of(artefact: ArtefactResults) -> str:
    """How the line of such variants is drawn: as cut, compensated, healed, or both; or quantised."""
    if artefact.quantisation:
        return "longdashdot" if artefact.compensation or artefact.adapter else "longdash"
    if artefact.adapter:
        return "dashdot" if artefact.compensation else "dot"
    return "dash" if artefact.compensation else "solid"


def points_of(collection: Collection, benchmark: str) -> list[FractionPoint]:
    """Every artefact that has a score of the benchmark, and a known fraction."""
    points = []
    for artefact in collection.artefacts:
        result, fraction = artefact.score(benchmark), artefact.fraction
        if result is not None and fraction is not None:
            scale, stderr = (1.0 if result.score.is_loss else 100.0), result.score.stderr
            spread = None if stderr is None else scale * stderr
            points.append(FractionPoint(artefact, result, 100 * fraction, scale * result.score.value, spread))
    return points


def titles(collection: Collection, wanted: Callable[[ArtefactResults], bool]) -> dict[str, str]:
    """Benchmark → title of those that a wanted artefact has a score of, by name."""
    scores = (one.score for a in collection.artefacts if wanted(a) for one in a.scores)
    return dict(sorted({score.benchmark: score.title for score in scores}.items()))


def charts(collection: Collection) -> list[Chart]:
    """A chart for each benchmark; a curve for each model, kind, and what was done about the cut."""
    page = []
    for benchmark, title in titles(collection, lambda _: True).items():
        curves = _curves(points_of(collection, benchmark))
        limits = limits_of(collection, benchmark, curves)
        page.append(chart_of(benchmark, title, "by what is left out", curves, limits))
    return page


def _curves(points: list[FractionPoint]) -> list[FractionCurve]:
    groups: dict[tuple[str, str, str], list[FractionPoint]] = {}
    for p in sorted(points, key=lambda p: p.percent):
        groups.setdefault((p.artefact.model, p.artefact.kind, p.artefact.mended), []).append(p)
    return [
        FractionCurve(name_of(model, LABELS[kind], how), model, kind, group, None, dash_of(group[0].artefact))
        for (model, kind, how), group in sorted(groups.items())
    ]


def name_of(*words: str) -> str:
    """A curve's name: 'SmolLM2, MLP, linear'; empty words are left out."""
    return ", ".join(word for word in words if word)


# ---- what is known without a measurement -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FractionLimits:
    """What a chart shows beside its curves.

    Attributes:
        is_loss: whether the benchmark is a loss.
        chance: the value that guessing gives.
        bands: % left out between which MMLU falls to chance, one pair for each model that a paper names.
    """

    is_loss: bool
    chance: float | None
    bands: list[tuple[float, float]]

    def shapes(self) -> list[dict[str, Any]]:
        """As Plotly draws them."""
        shapes: list[dict[str, Any]] = []
        if self.chance is not None:
            line = {"dash": "dot", "width": 1, "color": GREY}
            shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": line})
            shapes[-1] |= {"y0": self.chance, "y1": self.chance}
        for low, high in self.bands:
            band = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "opacity": 0.15, "line": {"width": 0}}
            edges = {"x0": low - BAND_EDGE, "x1": high + BAND_EDGE}
            shapes.append({**band, "fillcolor": GREY, **edges})
        return shapes

    def caption(self, title: str) -> str:
        """What the axis and these shapes mean."""
        note = "lower is better; 1 is a uniform guess" if self.is_loss else "%, with its standard error"
        parts = [f"{title}, {note}."]
        parts += ["The dotted line is guessing."] if self.chance is not None else []
        if self.bands:
            parts.append("The grey band is where MMLU falls to chance in Gromov et al., section 4.1.")
        return " ".join(parts)


def limits_of(collection: Collection, benchmark: str, curves: list[FractionCurve]) -> FractionLimits:
    """Of one benchmark, for the models that have curves."""
    scores = [one.score for a in collection.artefacts for one in a.scores if one.score.benchmark == benchmark]
    is_loss = any(score.is_loss for score in scores)
    chance = next((100 * score.chance for score in scores if score.chance is not None), None)
    models = dict.fromkeys(curve.model for curve in curves)
    bands = [band for model in models if benchmark == "mmlu" and (band := papers.transition(model))]
    return FractionLimits(is_loss, 1.0 if is_loss else chance, bands)


def chart_of(name: str, title: str, how: str, curves: list[FractionCurve], limits: FractionLimits) -> Chart:
    """The chart of one benchmark."""
    layout = layout_of("% left out", title, shapes=limits.shapes())
    gap = None if curves else "not drawn: how many layers these models have is not known here"
    return Chart(
        name=name,
        title=f"{title} against the fraction left out, {how}",
        caption=limits.caption(title),
        figure={"data": [curve.trace() for curve in curves], "layout": layout},
        gap=gap,
    )
