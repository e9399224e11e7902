"""Scores against the fraction left out, by the rule that chose it (Gromov et al. 2024, Figure 5)."""

from __future__ import annotations

from pipeline.report.charts import GREY, LABELS, Chart
from pipeline.report.figures import PaperFigure
from pipeline.report.figures.fraction import (
    FractionCurve,
    FractionPoint,
    chart_of,
    dash_of,
    limits_of,
    name_of,
    points_of,
    titles,
)
from pipeline.report.rows import Collection

PLACE = 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", GREY)
SHOWS = tuple(
    PaperFigure(
        "gromov",
        "5",
        f", {title}: angular beside last-but-final",
        f"rules-{name}",
        f"`pipeline score … --tasks {name}`",
    )
    for name, title in (("mmlu", "MMLU"), ("boolq", "BoolQ"), ("c4-loss", "C4 loss"))
)


def charts(collection: Collection) -> list[Chart]:
    """A chart for each benchmark of a variant whose rule is known; a curve for each rule."""
    how = "by the rule that chose what is left out"
    page = []
    for benchmark, title in titles(collection, lambda artefact: bool(artefact.selectors)).items():
        curves = _curves(points_of(collection, benchmark))
        limits = limits_of(collection, benchmark, curves)
        page.append(chart_of(f"rules-{benchmark}", title, how, curves, limits))
    return page


def _curves(points: list[FractionPoint]) -> list[FractionCurve]:
    """One for each model, kind, rule, and what was done about the cut; a rule has one colour."""
    groups: dict[tuple[str, str, str, str], list[FractionPoint]] = {}
    for p in sorted(points, key=lambda p: p.percent):
        for rule in p.artefact.selectors:
            groups.setdefault((p.artefact.model, p.artefact.kind, rule, p.artefact.mended), []).append(p)
    colours = {
        rule: COLOURS[k % len(COLOURS)] for k, rule in enumerate(sorted({rule for *_, rule, _ in groups}))
    }
    curves = []
    for (model, kind, rule, how), group in sorted(groups.items()):
        name, dash = name_of(model, LABELS[kind], rule, how), dash_of(group[0].artefact)
        curves.append(FractionCurve(name, model, kind, group, colours[rule], dash))
    return curves
