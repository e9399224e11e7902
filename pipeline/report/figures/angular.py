"""Angular distance d(ℓ, n) over ℓ, a curve for each block size n (Gromov et al. 2024, Figure 1c).

Legend: L layers, ℓ first layer of a block, n its size; M = L + 1 streams.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.calib import similarity
from pipeline.calib.measures import Array
from pipeline.report import drawing
from pipeline.report.charts import Chart, Point, Series, layout_of, trace_of
from pipeline.report.drawing import Drawing
from pipeline.report.figures import PaperFigure
from pipeline.report.rows import Collection, SourcedStatistics
from pipeline.store import Project

PLACE = 70
SHOWS = (
    PaperFigure(
        "gromov", "1c", ": angular distance of every block", "angular-", "`pipeline calibrate MODEL`"
    ),
)


@dataclass(frozen=True, slots=True)
class BlockDistances:
    """d(ℓ, n) of one block size n.

    Attributes:
        values: [L − n + 1], by first layer ℓ.
    """

    size: int
    values: tuple[float, ...]

    @property
    def nearest(self) -> int:
        """ℓ*(n), the first layer of the nearest block; of equals the deepest."""
        return min(range(len(self.values)), key=lambda first: (self.values[first], -first))


def curves(distances: Array) -> list[BlockDistances]:
    """Angular distances [M, M] → one curve for each n = 1 … L − 1."""
    layers = len(distances) - 1
    return [
        BlockDistances(n, tuple(float(distances[i, i + n]) for i in range(layers - n + 1)))
        for n in range(1, layers)
    ]


def charts(collection: Collection) -> list[Chart]:
    """A chart for each model, or why there is none."""
    page = []
    for k, statistics in enumerate(collection.statistics):
        if statistics.similarity is not None:
            page.append(_chart(statistics, curves(statistics.similarity.distances()), k))
        else:
            title = f"{statistics.model}: angular distance"
            page.append(Chart(f"angular-{k}", title, "", {"data": [], "layout": {}}, statistics.gap))
    return page


def _chart(statistics: SourcedStatistics, blocks: list[BlockDistances], k: int) -> Chart:
    data = []
    for block in blocks:
        points = [
            Point(first, d, f"block of {block.size} from layer {first}: d {d:.4f}", statistics.source)
            for first, d in enumerate(block.values)
        ]
        colour = f"rgba(0,158,115,{0.25 + 0.75 * block.size / (len(blocks) + 1):.2f})"
        trace = trace_of(
            points, Series(f"n = {block.size}", statistics.model, "block", colour, "circle", lines=True)
        )
        data.append({**trace, "mode": "lines", "line": {"width": 1, "color": colour}})
    return Chart(
        name=f"angular-{k}",
        title=f"{statistics.model}: angular distance of blocks",
        caption="One curve a block size n; its lowest point is the block that the rule angular leaves out "
        "(Gromov et al., Figure 1c).",
        figure={
            "data": data,
            "layout": layout_of("first layer of the block", "angular distance d(ℓ, n)", showlegend=False),
        },
    )


def draw(model: str, project: Project) -> Drawing:
    """The curves, with ℓ*(n) marked.

    Raises:
        UserError: the model has no statistics.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    blocks = curves(similarity.of_model(model, project).distances())
    title = f"{model}: distance over blocks of n layers"
    figure, plot = drawing.axes(
        title, "first layer of the block, ℓ", "angular distance d(ℓ, n) at the final token", 7.6
    )
    colours, scale = matplotlib.colormaps["viridis"], Normalize(1, len(blocks))
    for block in blocks:
        plot.plot(range(len(block.values)), block.values, color=colours(scale(block.size)), linewidth=1)
    nearest = [(block.nearest, block.values[block.nearest]) for block in blocks]
    x, y = zip(*nearest, strict=True)
    plot.plot(x, y, "o", color="black", markersize=3.5, label="ℓ*(n), the nearest")
    plot.legend(frameon=False, loc="upper right")
    figure.colorbar(ScalarMappable(scale, colours), ax=plot, label="block size n")
    rows = [(b.size, first, d, first == b.nearest) for b in blocks for first, d in enumerate(b.values)]
    return Drawing(figure, ("n", "l", "d", "is_best"), rows)
