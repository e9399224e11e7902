"""The maps and the folded weights of one variant, as its overlay has them.

A fold adds yT + b to what the projection before the place writes, y: its matrix W becomes (I + Tᵀ)W, and so
does its bias. Where the sublayer before the place is skipped too, what stands in for that is folded on:
f̂ᵢ = f̂ᵢ₋₁Tᵢ + bᵢ, down to the nearest projection that is there.

Legend: C hidden size, R rank; f̂ what stands in for a skipped sublayer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.calib.compensation.forms import Fit
from pipeline.calib.compensation.gathering import Array, before
from pipeline.calib.compensation.maps import LinearMap
from pipeline.models.compensation import MapParts, MapPlace
from pipeline.types import SkipSet, Sublayer, UserError

if TYPE_CHECKING:
    import torch

    from pipeline.calib.compensation.projections import Projections


@dataclass(frozen=True)
class Overlay:
    """What stands in for the sublayers of a skip set.

    Attributes:
        skip: the skip set.
        maps: by place.
        weights: the projections that something was folded into, and their biases, by name; in the
            checkpoint's dtype.
        folded_into: place → name of the weight.
    """

    skip: SkipSet
    maps: dict[MapPlace, LinearMap] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    folded_into: dict[MapPlace, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Numbers that the maps hold."""
        return sum(one.parameters for one in self.maps.values())

    @property
    def first_layer(self) -> int:
        """The lowest layer that it changes; 0 where it changes none."""
        layers = {*self.skip.attention, *self.skip.mlp}
        ends = [root(place, self.skip) for place in self.folded_into]
        return min(layers | {end[0] for end in ends if end is not None}, default=0)

    def parts(self) -> dict[MapPlace, MapParts]:
        """(factors, bias) of each map, in the precision that the file has."""
        import torch

        return {
            place: ([torch.from_numpy(f).float() for f in one.factors], torch.from_numpy(one.bias).float())
            for place, one in self.maps.items()
        }

    def write(self, path: Path) -> None:
        """Writes it as safetensors, atomically."""
        from safetensors.torch import save_file

        tensors = dict(self.weights)
        for place, (factors, bias) in self.parts().items():
            tensors |= {place.tensor(f"factor{i}"): factor for i, factor in enumerate(factors)}
            tensors[place.tensor("bias")] = bias
        if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise UserError(f"{broken[0]} is not finite: nothing was written; take another --with")
        with store.atomic(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def root(place: MapPlace, skip: SkipSet) -> Sublayer | None:
    """The nearest sublayer before a place that is there: a fold ends in its projection."""
    writer = before(place.sublayers[0])
    while writer is not None and writer in skip:
        writer = before(writer)
    return writer


@dataclass(frozen=True)
class _Link:
    """What stands in for one folded place: yM + c + Σ h_j·down_j·up_j, y of the chain's root.

    Attributes:
        matrix: M [C, C].
        constant: c [C].
        ups: place → up_j [R, C], of the maps in this chain.
    """

    matrix: Array
    constant: Array
    ups: dict[MapPlace, Array]


def compose(skip: SkipSet, fits: Mapping[MapPlace, Fit], projections: Projections) -> Overlay:
    """The overlay that fits of single places make together.

    Args:
        skip: the skip set; every sublayer of it is in one place.
        fits: by place.
        projections: of the whole model.
    """
    links: dict[Sublayer, _Link] = {}
    totals: dict[Sublayer, Array] = {}
    standing: dict[MapPlace, LinearMap] = {}
    folded_into: dict[MapPlace, str] = {}
    for place in sorted(fits, key=lambda one: one.sublayers):
        fitted = fits[place]
        standing[place] = fitted.map
        end = root(place, skip)
        if fitted.fold is None or end is None:
            continue
        link = _linked(fitted, links.get(before(place.sublayers[0])))  # type: ignore[arg-type]
        for other, up in link.ups.items():
            down, old = standing[other].factors
            standing[other] = replace(standing[other], factors=(down, old + up))
        if fitted.map.factors:
            link.ups[place] = fitted.map.factors[1]
        standing[place] = replace(standing[place], bias=link.constant)
        totals[end] = totals.get(end, 0.0) + link.matrix
        links[place.sublayers[-1]] = link
        folded_into[place] = projections.weight(end)
    weights = projections.folded(totals)
    return Overlay(skip, standing, weights, folded_into)


def _linked(fitted: Fit, earlier: _Link | None) -> _Link:
    """A place's link, behind that of the skipped sublayer before it, if there is one."""
    assert fitted.fold is not None
    (matrix,) = fitted.fold.factors
    constant = fitted.fold.bias + fitted.map.bias
    if earlier is None:
        return _Link(matrix, constant, {})
    ups = {place: up @ matrix for place, up in earlier.ups.items()}
    return _Link(earlier.matrix @ matrix, earlier.constant @ matrix + constant, ups)
