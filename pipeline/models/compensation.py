"""The file of a compensation: what stands in for each skipped sublayer, as safetensors beside the graph.

Legend: C hidden size, R rank.

A map stands in the place of one sublayer, and reads what the sublayer read: h · factor0 (· factor1) + bias.
Or it stands in the place of a run of whole layers, and reads the stream before the run. Its tensors are
called `compensation.attn5.bias` [C], `compensation.attn5.factor0` [C, C], or [C, R] with a `.factor1` [R, C];
those of a run `compensation.block12-17.…`. A bias may stand alone. All other tensors of the file have names
of the checkpoint's, whose weights they replace: projections into which a sublayer was folded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.models import safetensors_index
from pipeline.types import SkipSet, Sublayer, UserError, format_layers

if TYPE_CHECKING:
    import torch

PREFIX = "compensation."
MapParts = tuple[Sequence["torch.Tensor"], "torch.Tensor"]
"""(factors, bias) of a map."""
_NAME = re.compile(r"compensation\.((?:attn|mlp)\d{1,6}|block\d{1,6}(?:-\d{1,6})?)\.(bias|factor0|factor1)")


class Shaped(Protocol):
    """A tensor, or where one lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class MapPlace:
    """Where a map stands.

    Attributes:
        first, last: layers, both included; a sublayer's are the same.
        kind: 'attn' or 'mlp' of the one layer, or 'block' for all the sublayers of the run.
    """

    first: int
    last: int
    kind: str

    @property
    def name(self) -> str:
        """'attn5', 'block12-17'; a part of its tensors' names."""
        return f"{self.kind}{self.first}" + (f"-{self.last}" if self.last > self.first else "")

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """Those that it stands for, in the order of the stream."""
        kinds = ("attn", "mlp") if self.kind == "block" else (self.kind,)
        layers = range(self.first, self.last + 1)
        return tuple((i, kind) for i in layers for kind in kinds)  # type: ignore[misc]

    @property
    def layers(self) -> str:
        """'layer 5', 'layers 12-17', for a person."""
        return f"layer {self.first}" if self.first == self.last else f"layers {self.first}-{self.last}"

    def tensor(self, part: str) -> str:
        """Name of a tensor of it: 'bias', 'factor0' or 'factor1'."""
        return f"{PREFIX}{self.name}.{part}"

    @classmethod
    def of(cls, sublayer: Sublayer) -> MapPlace:
        """The place of one sublayer."""
        layer, kind = sublayer
        return cls(layer, layer, kind)

    @classmethod
    def parse(cls, name: str) -> MapPlace:
        """The inverse of `name`."""
        kind, first, last = re.fullmatch(r"([a-z]+)(\d+)(?:-(\d+))?", name).groups()  # type: ignore[union-attr]
        return cls(int(first), int(last or first), kind)


@dataclass(frozen=True, slots=True)
class MapSizes:
    """Numbers that maps hold.

    Attributes:
        parameters: all of them.
        products: of those, the entries of matrices, each a multiply-add a token.
    """

    parameters: int = 0
    products: int = 0


NO_MAPS = MapSizes()


def rank_of(form: str) -> int | None:
    """R of the map that a form puts in a place: 0 of a bias alone, None of a whole matrix.

    Args:
        form: 'bias', 'linear', 'matrix', 'rank16', 'fold', 'fold+rank16'.
    """
    if form in ("linear", "matrix"):
        return None
    match = re.search(r"rank(\d+)", form)
    return int(match[1]) if match else 0


def is_map(name: str) -> bool:
    """Whether a tensor's name is that of a part of a map."""
    return name.startswith(PREFIX)


def place_of(name: str) -> MapPlace | None:
    """The place of the map that a tensor is a part of; None where it is of none."""
    match = _NAME.fullmatch(name)
    return MapPlace.parse(match[1]) if match else None


def places(tensors: Mapping[str, Shaped], file: Path) -> dict[MapPlace, tuple[str, ...]]:
    """Place → names of its factors, none to two, of the maps among some tensors; in the order of the stream.

    Args:
        tensors: name → tensor, or where it lies.
        file: that they are of, for messages.

    Raises:
        UserError: a name that is no map's, or a map whose parts are missing or do not fit together.
    """
    parts: dict[MapPlace, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if not is_map(name):
            continue
        if not (match := _NAME.fullmatch(name)):
            raise UserError(f"{file} holds {name!r:.80}, which is no part of a compensation")
        parts.setdefault(MapPlace.parse(match[1]), {})[match[2]] = tuple(tensor.shape)
    for place, shapes in parts.items():
        _refuse_unfit(place, shapes, file)
    _refuse_overlap(parts, file)
    return {
        place: tuple(place.tensor(part) for part in sorted(parts[place]) if part != "bias")
        for place in sorted(parts, key=lambda p: (p.first, p.kind, p.last))
    }


def _refuse_unfit(place: MapPlace, shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    bias, first, second = (shapes.get(part) for part in ("bias", "factor0", "factor1"))
    fits = bias is not None and len(bias) == 1
    if fits and first is not None:
        last = second if second is not None else first
        fits = len(first) == len(last) == 2 and (first[0],) == bias == (last[1],)
        fits = fits and (second is None or first[1] == second[0])
    elif second is not None:
        fits = False
    if not fits or place.last < place.first:
        raise UserError(f"{file}: the parts of {PREFIX}{place.name} do not fit together; compensate again")


def _refuse_overlap(places: Iterable[MapPlace], file: Path) -> None:
    """Refuses two maps that stand for one sublayer: both would be added."""
    taken: dict[Sublayer, MapPlace] = {}
    for place in places:
        for sublayer in place.sublayers:
            if (other := taken.setdefault(sublayer, place)) != place:
                names = " and ".join(sorted((place.name, other.name)))
                raise UserError(f"{file}: {names} stand for the same sublayer; compensate again")


def active(maps: Mapping[MapPlace, MapParts], skip: SkipSet) -> dict[MapPlace, MapParts]:
    """The maps that stand in for sublayers which a skip set leaves out, each with all that it stands for."""
    return {place: parts for place, parts in maps.items() if all(one in skip for one in place.sublayers)}


def refuse_kept(place: MapPlace, skip: SkipSet, file: Path) -> None:
    """Refuses a map that stands where a sublayer is kept.

    Raises:
        UserError: the skip set does not leave out all that it stands for.
    """
    if not all(one in skip for one in place.sublayers):
        raise UserError(f"{file} has a map for {place.name}, which {skip.name} does not leave out")


def refuse_width(place: MapPlace, bias: Shaped, width: int, file: Path) -> None:
    """Refuses a map of another model's width; the parts of a map are known to fit each other.

    Raises:
        UserError: the map's C is not this one.
    """
    if tuple(bias.shape) != (width,):
        raise UserError(
            f"{file}: the map for {place.name} has {bias.shape[0]} outputs, and the model's hidden size is "
            f"{width}; compensate this model"
        )


def read(file: Path, skip: SkipSet) -> tuple[dict[str, torch.Tensor], dict[MapPlace, MapParts]]:
    """The weights of an overlay by name, and its maps by place: (factors, bias).

    Args:
        file: safetensors.
        skip: what the variant leaves out.

    Raises:
        UserError: as `safetensors_index.opened` and `places`; or a map stands where nothing is left out.
    """
    tensors = safetensors_index.load(file)
    maps: dict[MapPlace, MapParts] = {}
    for place, factors in places(tensors, file).items():
        refuse_kept(place, skip, file)
        maps[place] = [tensors[name] for name in factors], tensors[place.tensor("bias")]
    return {name: tensor for name, tensor in tensors.items() if not is_map(name)}, maps


@dataclass(frozen=True, slots=True)
class MapGroup:
    """The maps of one form.

    Attributes:
        form: 'bias', 'linear' or 'rank16'.
        places: where they stand, in the order of the stream.
        parameters: numbers that they hold together.
    """

    form: str
    places: tuple[MapPlace, ...]
    parameters: int

    @property
    def names(self) -> list[str]:
        """Of the places: 'attn5', 'block12-17'."""
        return [place.name for place in self.places]

    def words(self) -> str:
        """'attn 5, 7-9; mlp 12', for a person."""
        parts = []
        for kind in ("attn", "mlp"):
            layers = [place.first for place in self.places if place.kind == kind]
            parts += [f"{kind} {format_layers(layers).replace('_', ', ')}"] if layers else []
        runs = [place.name.removeprefix("block") for place in self.places if place.kind == "block"]
        return "; ".join([*parts, *([f"block {', '.join(runs)}"] if runs else [])])


def contents(file: Path) -> tuple[tuple[MapGroup, ...], tuple[str, ...]]:
    """What an overlay holds: its maps by form, and the names of the weights that it replaces.

    Args:
        file: safetensors.
    """
    tensors = safetensors_index.read_index([file])
    groups: dict[str, list[MapPlace]] = {}
    for place, factors in places(tensors, file).items():
        rank = tensors[factors[0]].shape[1] if len(factors) == 2 else None
        form = f"rank{rank}" if rank is not None else "linear" if factors else "bias"
        groups.setdefault(form, []).append(place)
    sizes = {form: sum(_parameters(tensors, place) for place in there) for form, there in groups.items()}
    maps = tuple(MapGroup(form, tuple(there), sizes[form]) for form, there in sorted(groups.items()))
    return maps, tuple(sorted(name for name in tensors if not is_map(name)))


def _parameters(tensors: Mapping[str, Shaped], place: MapPlace) -> int:
    """Numbers that the map of one place holds."""
    return sum(math.prod(tensor.shape) for name, tensor in tensors.items() if place_of(name) == place)


def sizes(files: Iterable[Path]) -> MapSizes:
    """What the maps in a graph's overlays hold; weights that are merely replaced cost nothing more.

    Args:
        files: safetensors.
    """
    parameters = products = 0
    for file in files:
        for name, tensor in safetensors_index.read_index([file]).items():
            if is_map(name):
                count = math.prod(tensor.shape)
                parameters += count
                products += count if len(tensor.shape) == 2 else 0
    return MapSizes(parameters, products)
