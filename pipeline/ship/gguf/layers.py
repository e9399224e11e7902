"""The layers of llama.cpp's architecture `deci` that say what a variant says, in the order of the stream.

A layer of it has two places, one for an attention and one for a feed-forward, and each place may hold what
stands in for a sublayer too (llama.cpp's `src/models/deci.cpp`):

- an attention with heads and no key/value heads is a matrix on the normed stream: a linear map;
- a feed-forward of zero rows with a bias behind it is a constant; without one it is nothing. A width of 0
  must never be written: llama.cpp leaves out that layer's attention too, without an error;
- a feed-forward of width R, whose gate is 1 for every token, is a map of rank R.

Legend: C hidden size, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.models.compensation import MapPlace
from pipeline.types import SkipSet, Sublayer

Form = Literal["own", "linear", "low rank", "constant", "nothing"]


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a map is made of.

    Attributes:
        rank: None of a whole matrix [C, C], 0 of a bias alone, else R.
        has_bias: one of its bias's numbers is not zero.
    """

    rank: int | None
    has_bias: bool


@dataclass(frozen=True, slots=True)
class LayerPart:
    """What one of the two places of a layer holds.

    Attributes:
        form: 'own' is the model's own sublayer; 'nothing' adds zero to the stream.
        place: of the map that it is, or is a part of.
    """

    form: Form
    place: MapPlace | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the file.

    Attributes:
        index: of the layer in the whole model that it is of, or stands in for.
        attention: None: no heads.
        feed_forward: always there.
    """

    index: int
    attention: LayerPart | None
    feed_forward: LayerPart


OWN, NOTHING = LayerPart("own"), LayerPart("nothing")


def layers(skip: SkipSet, num_layers: int, maps: Mapping[MapPlace, MapShape]) -> tuple[Layer, ...]:
    """The layers of the file; of a layer of the model there may be none, or two where maps need them.

    llama.cpp takes the size of a head from the first layer's number of heads. So the first layer has heads
    even where its attention is left out: as a linear map of zeros.

    Args:
        skip: what is left out.
        num_layers: L.
        maps: of single sublayers.
    """
    written: list[Layer] = []
    for i in range(num_layers):
        written += _of_layer(i, skip, maps)
    if written and written[0].attention is None:
        written[0] = Layer(written[0].index, NOTHING, written[0].feed_forward)
    return tuple(written)


def _of_layer(index: int, skip: SkipSet, maps: Mapping[MapPlace, MapShape]) -> list[Layer]:
    """What is written for one layer of the model."""
    places: list[
        tuple[int, LayerPart]
    ] = []  # (0 of an attention's place or 1 of a feed-forward's, what it holds)
    sublayers: tuple[Sublayer, ...] = ((index, "attn"), (index, "mlp"))
    for side, sublayer in enumerate(sublayers):
        place = MapPlace.of(sublayer)
        if sublayer not in skip:
            places.append((side, OWN))
        elif place in maps:
            places += _of_map(place, maps[place])
    written: list[Layer] = []
    sides: dict[int, LayerPart] = {}
    for side, part in places:
        if any(taken >= side for taken in sides):
            written.append(_layer(index, sides))
            sides = {}
        sides[side] = part
    return [*written, _layer(index, sides)] if sides else written


def _of_map(place: MapPlace, shape: MapShape) -> list[tuple[int, LayerPart]]:
    if shape.rank:
        return [(1, LayerPart("low rank", place))]
    parts = [(0, LayerPart("linear", place))] if shape.rank is None else []
    return [*parts, *([(1, LayerPart("constant", place))] if shape.has_bias else [])]


def _layer(index: int, sides: Mapping[int, LayerPart]) -> Layer:
    return Layer(index, sides.get(0), sides.get(1, NOTHING))
