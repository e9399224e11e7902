"""Angular distance of every block, each block size scaled to 0 … 1 (Gromov et al. 2024, Figure 4).

Legend: L layers, ℓ first layer of a block, n its size.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.calib import similarity
from pipeline.calib.measures import Array
from pipeline.calib.similarity import Similarity
from pipeline.report import drawing
from pipeline.report.charts import Chart, layout_of
from pipeline.report.drawing import Drawing
from pipeline.report.figures import PaperFigure
from pipeline.report.rows import Collection
from pipeline.store import Project

PLACE = 80
SHOWS = (
    PaperFigure(
        "gromov", "4", ": heat map of the angular distance", "heatmap-", "`pipeline calibrate MODEL`"
    ),
)


def cells(statistics: Similarity) -> Array:
    """[L − 1, L]: a row for each n, a column for each ℓ; NaN where no block fits."""
    return similarity.block_curves(statistics.distances())


def charts(collection: Collection) -> list[Chart]:
    """A chart for each model whose arrays can be used."""
    return [
        _chart(statistics.model, cells(statistics.similarity), k)
        for k, statistics in enumerate(collection.statistics)
        if statistics.similarity is not None
    ]


def _chart(model: str, values: Array, k: int) -> Chart:
    rows, columns = values.shape
    # JSON has no NaN.
    z = [[v if math.isfinite(v) else None for v in row] for row in values.round(4).tolist()]
    trace = {
        "type": "heatmap",
        "z": z,
        "y": list(range(1, rows + 1)),
        "x": list(range(columns)),
        "colorscale": "Viridis",
        "reversescale": True,
        "colorbar": {"title": {"text": "distance"}, "thickness": 12},
        "hoverongaps": False,
        "meta": {"model": model, "kind": "block"},
        "hovertemplate": "block of %{y} from layer %{x}: %{z}<extra></extra>",
    }
    return Chart(
        name=f"heatmap-{k}",
        title=f"{model}: which blocks change the stream least",
        caption="Of each block size n: 0 is the nearest block (light), 1 the farthest "
        "(Gromov et al., Figure 4).",
        figure={"data": [trace], "layout": layout_of("first layer of the block", "block size n")},
    )


def draw(model: str, project: Project) -> Drawing:
    """The map; its lightness rises with the distance.

    Raises:
        UserError: the model has no statistics.
    """
    values = cells(similarity.of_model(model, project))
    rows, columns = values.shape
    title = f"{model}: which blocks change the stream least"
    figure, plot = drawing.axes(title, "first layer of the block, ℓ", "block size n", 7.6)
    extent = (-0.5, columns - 0.5, 0.5, rows + 0.5)
    image = plot.imshow(values, origin="lower", aspect="auto", cmap="viridis", extent=extent)
    figure.colorbar(image, ax=plot, label="distance, 0: nearest of this n, 1: farthest")
    numbers = [
        (n + 1, first, float(value)) for (n, first), value in np.ndenumerate(values) if not np.isnan(value)
    ]
    return Drawing(figure, ("n", "l", "normalised_d"), numbers)
