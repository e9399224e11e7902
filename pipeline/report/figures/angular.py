"""Angular distance d(ℓ, n) over ℓ, a curve for each block size n, ℓ*(n) marked (Gromov et al. 2024, Figure 1c)."""

from __future__ import annotations

from pipeline.calib import similarity
from pipeline.report import figures
from pipeline.report.figures import Figure


def draw(model: str) -> Figure:
    import matplotlib
    from matplotlib.colors import Normalize

    told = similarity.of_model(model)
    d, layers = told.distances(), told.layers
    title = f"{model}: distance over blocks of n layers"
    drawing, plot = figures.axes(
        title, "first layer of the block, ℓ", "angular distance d(ℓ, n) at the final token", 7.6
    )
    colours, scale = matplotlib.colormaps["viridis"], Normalize(1, layers - 1)
    rows, best = [], []
    for n in range(1, layers):
        curve = [float(d[first, first + n]) for first in range(layers - n + 1)]
        first = min(range(len(curve)), key=lambda k: (curve[k], -k))
        best.append((first, curve[first]))
        plot.plot(range(len(curve)), curve, color=colours(scale(n)), linewidth=1)
        rows += [(n, k, value, k == first) for k, value in enumerate(curve)]
    plot.plot(
        *zip(*best, strict=True),
        color="black",
        marker="o",
        markersize=3.5,
        linestyle="none",
        label="ℓ*(n), the nearest",
    )
    plot.legend(frameon=False, loc="upper right")
    drawing.colorbar(matplotlib.cm.ScalarMappable(scale, colours), ax=plot, label="block size n")
    return Figure(drawing, ("n", "l", "d", "is_best"), rows)
