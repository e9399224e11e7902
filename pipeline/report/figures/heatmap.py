"""Angular distance of every block, each block size shifted and scaled to 0 … 1 (Gromov et al. 2024, Figure 4)."""

from __future__ import annotations

import numpy as np

from pipeline.calib import similarity
from pipeline.report import figures
from pipeline.report.figures import Figure


def draw(model: str) -> Figure:
    told = similarity.of_model(model)
    shown, layers = similarity.block_curves(told.distances()), told.layers
    title = f"{model}: which blocks change the stream least"
    drawing, plot = figures.axes(title, "first layer of the block, ℓ", "block size n", 7.6)
    image = plot.imshow(
        shown, origin="lower", aspect="auto", cmap="viridis", extent=(-0.5, layers - 0.5, 0.5, layers - 0.5)
    )
    drawing.colorbar(image, ax=plot, label="distance, 0: nearest of this n, 1: farthest")
    rows = [
        (n + 1, first, float(value)) for (n, first), value in np.ndenumerate(shown) if not np.isnan(value)
    ]
    return Figure(drawing, ("n", "l", "normalised_d"), rows)
