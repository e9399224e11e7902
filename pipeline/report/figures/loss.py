"""Token loss over log V against the fraction of layers left out, before and after healing (Gromov et al. 2024, Figure 3)."""

from __future__ import annotations

from pipeline import store
from pipeline.evals.score import results
from pipeline.evals.score.results import LOWER_IS_BETTER, Score
from pipeline.report import figures
from pipeline.report.figures import Figure
from pipeline.types import UserError


def draw(model: str) -> Figure:
    points = _points(model)
    drawing, plot = figures.axes(
        f"{model}: loss without blocks of layers", "layers left out, %", "token loss / log V"
    )
    benchmark = points[0][1].title
    rows = []
    for healed, style in zip((False, True), figures.SERIES, strict=False):
        mine = sorted(
            (100 * fraction, score.value, score.stderr or 0.0, score.variant)
            for fraction, score, h in points
            if h == healed
        )
        if mine:
            x, y, error, variants = zip(*mine, strict=True)
            lowest = {fraction: min(v for f, v in zip(x, y, strict=True) if f == fraction) for fraction in x}
            plot.errorbar(
                x, y, yerr=error, capsize=2, color=style["color"], marker=style["marker"], linestyle="none"
            )
            label = "healed" if healed else "not healed"
            plot.plot(list(lowest), list(lowest.values()), label=f"{label} (best of each size)", **style)
            rows += [
                (variant, a, b, c, healed) for variant, a, b, c in zip(variants, x, y, error, strict=True)
            ]
    plot.axhline(1, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
    plot.text(0, 1, "uniform guess", va="bottom", fontsize=8)
    plot.set_ylabel(benchmark)
    plot.legend(frameon=False)
    plot.grid(alpha=0.25)
    return Figure(drawing, ("variant", "percent", "loss_over_log_v", "stderr", "healed"), rows)


def _points(model: str) -> list[tuple[float, Score, bool]]:
    """(fraction, score, healed) of every variant of whole blocks that has a loss; of one benchmark, the one with most points."""
    found: dict[str, list[tuple[float, Score, bool]]] = {}
    for graph in store.graphs_of(model):
        record = store.read_sidecar(graph)
        variant = store.variant_of(record)
        if variant.skip.attention == variant.skip.mlp and variant.precision == "fp32":
            for score in results.scores_of(graph):
                if score.metric in LOWER_IS_BETTER:
                    point = (
                        len(variant.skip.attention) / record["num_layers"],
                        score,
                        variant.adapter is not None,
                    )
                    found.setdefault(score.benchmark, []).append(point)
    if not found:
        raise UserError(
            f"no loss of {model} has been measured; run `pipeline score graphs/{model}/*.fp32.onnx --tasks smoke-loss` (or c4-loss)"
        )
    return max(found.values(), key=len)
