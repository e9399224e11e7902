"""Cosine similarity of the residual stream before and after each sublayer (Tyukin et al. 2024, Figure 1).

Legend: L layers.
"""

from __future__ import annotations

from pipeline.calib import similarity
from pipeline.calib.similarity import Similarity
from pipeline.report import drawing
from pipeline.report.charts import LABELS, STYLE, Chart, Point, Series, layout_of, trace_of
from pipeline.report.drawing import Drawing
from pipeline.report.figures import PaperFigure
from pipeline.report.rows import Collection, SourcedStatistics
from pipeline.store import Project
from pipeline.store.records import SimilarityRecord

PLACE = 60
SHOWS = (
    PaperFigure(
        "tyukin",
        "1",
        ": cosine similarity of neighbouring layers",
        "cosine-",
        "`pipeline calibrate MODEL`",
    ),
)
KINDS = {"layer": "block", "attn": "attn", "mlp": "mlp"}
"""Part of a layer → the kind whose colour and marker it has."""


def curves(record: SimilarityRecord) -> dict[str, tuple[float, ...]]:
    """Part of a layer → [L], the means over all tokens."""
    return {"layer": record.cosine_layer, "attn": record.cosine_attn, "mlp": record.cosine_mlp}


def charts(collection: Collection) -> list[Chart]:
    """A chart for each model."""
    return [_chart(statistics, k) for k, statistics in enumerate(collection.statistics)]


def _chart(statistics: SourcedStatistics, k: int) -> Chart:
    data = []
    for part, values in curves(statistics.record).items():
        kind = KINDS[part]
        name = "whole layer" if part == "layer" else LABELS[kind]
        points = [Point(i, v, f"layer {i}: {v:.4f}", statistics.source) for i, v in enumerate(values)]
        data.append(trace_of(points, Series(name, statistics.model, kind, *STYLE[kind], lines=True)))
    return Chart(
        name=f"cosine-{k}",
        title=f"{statistics.model}: stream before and after each sublayer",
        caption="Near 1: the stream hardly changes, so this sublayer is a candidate "
        "(Tyukin et al., Figure 1).",
        figure={"data": data, "layout": layout_of("layer", "cosine similarity")},
    )


def draw(model: str, project: Project) -> Drawing:
    """The curves with their standard errors.

    Raises:
        UserError: the model has no statistics.
    """
    statistics: Similarity = similarity.of_model(model, project)
    figure, plot = drawing.axes(
        f"{model}: stream before and after each sublayer", "layer", "cosine similarity"
    )
    rows = []
    for (part, mean), style in zip(curves(statistics.record).items(), drawing.SERIES, strict=False):
        label = "layer" if part == "layer" else LABELS[KINDS[part]]
        errors = statistics.cosine_error(part)
        layers = range(len(mean))
        plot.errorbar(layers, mean, yerr=errors, label=label, markersize=4, linewidth=1.2, capsize=2, **style)
        rows += [(label, i, value, float(e)) for i, value, e in zip(layers, mean, errors, strict=True)]
    plot.legend(frameon=False)
    plot.grid(alpha=0.25)
    return Drawing(figure, ("what", "layer", "cosine", "stderr"), rows)
