"""The file of a compensation: which tensors are maps, where they stand, and what does not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.models import compensation
from pipeline.models.compensation import MapPlace, MapSizes
from pipeline.types import SkipSet, UserError

ATTN5, MLP7, RUN = MapPlace(5, 5, "attn"), MapPlace(7, 7, "mlp"), MapPlace(12, 17, "block")


@pytest.mark.parametrize(
    ("form", "rank"),
    [("bias", 0), ("linear", None), ("rank16", 16), ("fold", 0), ("fold+rank128", 128)],
)
def test_the_rank_of_a_form(form: str, rank: int | None) -> None:
    assert compensation.rank_of(form) == rank


@pytest.mark.parametrize(
    ("place", "name", "count"),
    [(ATTN5, "attn5", 1), (MLP7, "mlp7", 1), (RUN, "block12-17", 12), (MapPlace(3, 3, "block"), "block3", 2)],
)
def test_a_place_and_its_name(place: MapPlace, name: str, count: int) -> None:
    assert place.name == name and MapPlace.parse(name) == place and len(place.sublayers) == count
    assert compensation.place_of(place.tensor("factor1")) == place
    assert place.sublayers[0] == (place.first, "mlp" if place.kind == "mlp" else "attn")


@pytest.mark.parametrize("name", ["model.norm.weight", "compensation.attn.bias", "compensation.attn5.scale"])
def test_other_names_are_of_no_place(name: str) -> None:
    assert compensation.place_of(name) is None


def tensors(*places: MapPlace, width: int = 8) -> dict[str, torch.Tensor]:
    """A matrix for each place but the first, which has a bias alone."""
    matrices = {place.tensor("factor0"): torch.eye(width) for place in places[1:]}
    return {place.tensor("bias"): torch.ones(width) for place in places} | matrices


def test_places_are_in_the_streams_order_with_their_factors(tmp_path: Path) -> None:
    held = {**tensors(MLP7, RUN, ATTN5), "model.norm.weight": torch.ones(8)}
    found = compensation.places(held, tmp_path)
    assert list(found) == [ATTN5, MLP7, RUN]
    assert found == {ATTN5: (ATTN5.tensor("factor0"),), MLP7: (), RUN: (RUN.tensor("factor0"),)}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"attn5.factor0": (8, 8)}, "parts of compensation.attn5 do not fit"),
        ({"attn5.bias": (8, 1)}, "parts of compensation.attn5 do not fit"),
        ({"attn5.bias": (8,), "attn5.factor1": (2, 8)}, "parts of compensation.attn5 do not fit"),
        ({"attn5.bias": (8,), "attn5.factor0": (8, 2)}, "parts of compensation.attn5 do not fit"),
        ({"mlp5.bias": (8,), "mlp5.factor0": (8, 3), "mlp5.factor1": (2, 8)}, "compensation.mlp5 do not fit"),
        ({"block7-5.bias": (8,)}, "parts of compensation.block7 do not fit"),
        ({"mlp5.weight": (8,)}, "'compensation.mlp5.weight', which is no part of a compensation"),
        ({"block5-6.bias": (8,), "mlp6.bias": (8,)}, "block5-6 and mlp6 stand for the same sublayer"),
        ({"block5-6.bias": (8,), "block6-7.bias": (8,)}, "block5-6 and block6-7 stand for the same sublayer"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]], words: str, tmp_path: Path) -> None:
    held = {f"compensation.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(UserError, match=words):
        compensation.places(held, tmp_path / "x.safetensors")


def test_a_file_read_back(tmp_path: Path) -> None:
    file = tmp_path / "o.safetensors"
    save_file({**tensors(MLP7, ATTN5), "model.norm.weight": torch.full((8,), 3.0)}, file)
    weights, maps = compensation.read(file, SkipSet((5,), (7,)))
    assert list(weights) == ["model.norm.weight"] and list(maps) == [ATTN5, MLP7]
    (factor,), bias = maps[ATTN5]
    assert torch.equal(factor, torch.eye(8)) and torch.equal(bias, torch.ones(8)) and maps[MLP7][0] == []
    with pytest.raises(UserError, match="has a map for mlp7, which attn5 does not leave out"):
        compensation.read(file, SkipSet((5,)))


def test_sizes_are_of_the_maps_alone(tmp_path: Path) -> None:
    file = tmp_path / "o.safetensors"
    save_file({**tensors(MLP7, ATTN5), "model.norm.weight": torch.ones(8)}, file)
    assert compensation.sizes([file]) == MapSizes(parameters=8 + 8 + 64, products=64)
    assert compensation.sizes([]) == compensation.NO_MAPS


def test_the_contents_by_form(tmp_path: Path) -> None:
    file, low = tmp_path / "o.safetensors", MapPlace(8, 8, "mlp")
    ranked = {low.tensor("factor0"): torch.ones(8, 2), low.tensor("factor1"): torch.ones(2, 8)}
    held = {**tensors(MLP7, ATTN5, RUN, MapPlace(6, 6, "attn")), **tensors(low), **ranked}
    save_file({**held, "model.norm.weight": torch.ones(8)}, file)
    maps, folded = compensation.contents(file)
    assert folded == ("model.norm.weight",)
    assert [(one.form, one.words(), one.parameters) for one in maps] == [
        ("bias", "mlp 7", 8),
        ("linear", "attn 5-6; block 12-17", 3 * (64 + 8)),
        ("rank2", "mlp 8", 8 + 32),
    ]
