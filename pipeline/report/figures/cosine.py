"""Cosine similarity of the residual stream before and after each layer, attention and MLP (Tyukin et al. 2024, Figure 1)."""

from __future__ import annotations

import numpy as np

from pipeline.calib import similarity
from pipeline.report import figures
from pipeline.report.figures import Figure

LABELS = {"layer": "layer", "attn": "attention", "mlp": "MLP"}


def draw(model: str) -> Figure:
    told = similarity.of_model(model)
    drawing, plot = figures.axes(
        f"{model}: stream before and after each sublayer", "layer", "cosine similarity"
    )
    layers, rows = np.arange(told.layers), []
    for (kind, label), style in zip(LABELS.items(), figures.SERIES, strict=False):
        mean, error = told.cosine(kind), told.cosine_error(kind)
        plot.errorbar(layers, mean, yerr=error, label=label, markersize=4, linewidth=1.2, capsize=2, **style)
        rows += [
            (label, int(layer), float(m), float(e)) for layer, m, e in zip(layers, mean, error, strict=True)
        ]
    plot.legend(frameon=False)
    plot.grid(alpha=0.25)
    return Figure(drawing, ("what", "layer", "cosine", "stderr"), rows)
