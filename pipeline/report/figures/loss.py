"""Token loss over log V against the fraction of blocks left out (Gromov et al. 2024, Figure 3).

Legend: V vocabulary.

The page shows the same points among those of `fraction`.
"""

from __future__ import annotations

import shlex
from itertools import cycle

from pipeline.report import collect, drawing
from pipeline.report.drawing import Drawing
from pipeline.report.figures.fraction import FractionPoint, points_of
from pipeline.report.rows import ArtefactResults
from pipeline.store import Project
from pipeline.types import UserError


def draw(model: str, project: Project) -> Drawing:
    """Every variant is a mark; a line joins the best of each size.

    Raises:
        UserError: no loss has been measured.
    """
    points = block_losses(model, project)
    benchmark = points[0].result.score.title
    figure, plot = drawing.axes(f"{model}: loss without blocks of layers", "layers left out, %", benchmark)
    rows = []
    # The base has no cut to mend, and stands with the variants as they were cut.
    kinds = sorted({p.artefact.mended for p in points} - {"", "healed"})
    for how, style in zip(("", "healed", *kinds), cycle(drawing.SERIES), strict=False):
        group = [p for p in points if p.artefact.mended == how]
        if not group:
            continue
        x, y, errors = ([*column] for column in zip(*map(_numbers, group), strict=True))
        marks = {"color": style["color"], "marker": style["marker"]}
        plot.errorbar(x, y, yerr=errors, capsize=2, linestyle="none", **marks)
        lowest = {percent: min(b for a, b in zip(x, y, strict=True) if a == percent) for percent in x}
        label = f"{how or 'not healed'} (best of each size)"
        plot.plot(list(lowest), list(lowest.values()), label=label, **style)
        rows += [_row(p) for p in group]
    plot.axhline(1, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
    plot.text(0, 1, "uniform guess", va="bottom", fontsize=8)
    plot.legend(frameon=False)
    plot.grid(alpha=0.25)
    columns = ("variant", "percent", "loss_over_log_v", "stderr", "healed", "compensation")
    return Drawing(figure, columns, rows)


def _row(point: FractionPoint) -> tuple[object, ...]:
    artefact = point.artefact
    return artefact.variant, *_numbers(point), artefact.adapter is not None, artefact.compensation or ""


def _numbers(point: FractionPoint) -> tuple[float, float, float]:
    """Percent left out, loss, standard error."""
    return point.percent, point.value, point.stderr or 0.0


def block_losses(model: str, project: Project) -> list[FractionPoint]:
    """Losses of the fp32 graphs without whole blocks, by size; of the benchmark that most of them have.

    Raises:
        UserError: there are none.
    """
    collection = collect.gather([model], project)
    benchmarks = {one.score.benchmark for a in collection.artefacts for one in a.scores if one.score.is_loss}
    losses = [
        [p for p in points_of(collection, benchmark) if _is_block_graph(p.artefact)]
        for benchmark in sorted(benchmarks)
    ]
    best = max(losses, key=len, default=[])
    if not best:
        raise UserError(
            f"no loss of {model} has been measured; "
            f"run `pipeline score graphs/{shlex.quote(model)}/*.fp32.onnx --tasks smoke-loss` (or c4-loss)"
        )
    return sorted(best, key=lambda p: (p.percent, p.value))


def _is_block_graph(artefact: ArtefactResults) -> bool:
    return artefact.kind in ("base", "block") and (artefact.precision, artefact.runner) == ("fp32", "graph")
