"""What decides how a variant can be written for other engines: config, skip set, maps. No weight is read.

Only of a map's bias [C] the numbers are looked at: one that is not zero has no place in nemotron-nas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.config import Config
from pipeline.ship import pruned
from pipeline.ship.pruned import PrunedModel, StoredMap
from pipeline.types import SkipSet, Sublayer


@dataclass(frozen=True)
class Outline:
    """A variant, without its weights.

    Attributes:
        config: config.json of the whole model, normalised.
        skip: what is left out.
        maps: where a matrix stands in, place → whether its bias has a number other than zero.
        constants: where a bias alone stands in that has a number other than zero.
    """

    config: Config
    skip: SkipSet
    maps: Mapping[MapPlace, bool]
    constants: tuple[MapPlace, ...] = ()

    @property
    def num_layers(self) -> int:
        """L of the whole model."""
        count: int = self.config["num_hidden_layers"]
        return count

    @property
    def whole_blocks(self) -> bool:
        """Whether nothing but whole layers goes, and nothing stands in for them."""
        return self.skip.attention == self.skip.mlp and not self.maps and not self.constants

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers of which a sublayer is left or mapped, by their indices in the whole model."""
        return tuple(
            i for i in range(self.num_layers) if self.is_there((i, "attn")) or self.is_there((i, "mlp"))
        )

    def is_there(self, sublayer: Sublayer) -> bool:
        """Whether a sublayer is kept, or a matrix stands in for it."""
        return sublayer not in self.skip or MapPlace.of(sublayer) in self.maps


def of_model(model: PrunedModel) -> Outline:
    """The outline of a variant that is read."""
    return _outline(model.config, model.skip, model.maps)


def of_graph(graph: Path) -> Outline:
    """The outline of a graph's variant, from headers and, of each map, its bias.

    Raises:
        UserError: it is no graph of one variant, or a file is damaged.
    """
    record, maps = store.graph_sidecar(graph), dict[MapPlace, StoredMap]()
    for file in store.overlays(graph):
        maps |= pruned.stored_maps(pruned.overlay_tensors(file), file)
    return _outline(open_checkpoint(graph.parent).config, record.skip_set, maps)


def _outline(config: Config, skip: SkipSet, maps: Mapping[MapPlace, StoredMap]) -> Outline:
    biased = {place: bool(one.bias.array().any()) for place, one in maps.items()}
    matrices = {place: biased[place] for place, one in maps.items() if one.factors}
    constants = tuple(place for place, one in maps.items() if not one.factors and biased[place])
    return Outline(config, skip, matrices, constants)
