"""What stands in one place alone, and behind another that is skipped too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.calib.compensation import maps
from pipeline.calib.compensation.forms import Fit
from pipeline.calib.compensation.maps import LinearMap
from pipeline.calib.compensation.overlay import Overlay, compose, root
from pipeline.models import compensation
from pipeline.models.compensation import MapPlace
from pipeline.types import SkipSet, Sublayer, UserError

C = 6
RNG = np.random.default_rng(3)


class KeptTotals:
    """Stands for `Projections`: keeps what is folded, and changes one weight of its own."""

    def __init__(self) -> None:
        self.totals: dict[Sublayer, np.ndarray] = {}

    def weight(self, sublayer: Sublayer) -> str:
        return f"{sublayer[1]}{sublayer[0]}.weight"

    def folded(self, totals: Mapping[Sublayer, np.ndarray]) -> dict[str, torch.Tensor]:
        self.totals = dict(totals)
        return {self.weight(one): torch.zeros(2, 2) for one in totals}


def matrix() -> LinearMap:
    return LinearMap((RNG.normal(size=(C, C)),), RNG.normal(size=C))


def test_where_a_fold_ends() -> None:
    place = MapPlace.parse
    assert root(place("mlp3"), SkipSet.parse("mlp3")) == (3, "attn")
    assert root(place("attn3"), SkipSet.parse("attn3")) == (2, "mlp")
    assert root(place("attn0"), SkipSet.parse("attn0")) is None
    assert root(place("mlp3"), SkipSet.parse("block2-3")) == (1, "mlp")
    assert root(place("block2-3"), SkipSet.parse("block2-3")) == (1, "mlp")
    assert root(place("mlp1"), SkipSet.parse("block0-1")) is None


def test_maps_without_folds_stand_where_they_were_fitted() -> None:
    one, two = matrix(), matrix()
    fits = {MapPlace.parse("mlp3"): Fit("linear", one), MapPlace.parse("mlp1"): Fit("linear", two)}
    made = compose(SkipSet.parse("mlp1_3"), fits, KeptTotals())  # type: ignore[arg-type]
    assert made.maps == {MapPlace.parse("mlp1"): two, MapPlace.parse("mlp3"): one} and not made.weights
    assert made.parameters == 2 * (C * C + C)


def test_a_chain_of_folds_gives_what_its_links_give_one_after_the_other() -> None:
    """y of mlp1 → attn2 (skipped) → mlp2 (skipped) → attn3 (skipped), each with a rank of its own."""
    places = [MapPlace.parse(name) for name in ("attn2", "mlp2", "attn3")]
    folds = [matrix() for _ in places]
    ranks = [
        LinearMap((RNG.normal(size=(C, 2)), RNG.normal(size=(2, C))), RNG.normal(size=C)) for _ in places
    ]
    fits = {p: Fit("fold+rank2", rank, fold) for p, rank, fold in zip(places, ranks, folds, strict=True)}
    kept = KeptTotals()
    made = compose(SkipSet((2, 3), (2,)), fits, kept)  # type: ignore[arg-type]
    y, h = RNG.normal(size=(40, C)), [RNG.normal(size=(40, C)) for _ in places]
    previous, wanted = y, np.zeros((40, C))
    for reads, rank, fold in zip(h, ranks, folds, strict=True):
        previous = fold(previous) + rank(reads)
        wanted += previous
    assert list(kept.totals) == [(1, "mlp")] and list(made.weights) == ["mlp1.weight"]
    got = y @ kept.totals[1, "mlp"]
    for place, reads in zip(places, h, strict=True):
        got = got + made.maps[place](reads)
    np.testing.assert_allclose(got, wanted, atol=1e-9)
    assert set(made.folded_into.values()) == {"mlp1.weight"}


def test_it_is_written_as_it_is_read(tmp_path: Path) -> None:
    place = MapPlace.parse("attn2")
    weights = {"model.layers.1.mlp.down_proj.weight": torch.randn(3, 4, dtype=torch.bfloat16)}
    made = Overlay(SkipSet.parse("attn2"), {place: matrix()}, weights)
    made.write(tmp_path / "a.safetensors")
    read, maps = compensation.read(tmp_path / "a.safetensors", made.skip)
    assert torch.equal(read["model.layers.1.mlp.down_proj.weight"], next(iter(weights.values())))
    factors, bias = maps[place]
    np.testing.assert_allclose(factors[0].numpy(), made.maps[place].factors[0], rtol=1e-6)
    assert bias.dtype == torch.float32 and bias.shape == (C,)
    assert {t.dtype for n, t in load_file(tmp_path / "a.safetensors").items() if "comp" in n} == {
        torch.float32
    }
    broken: Any = LinearMap((), np.full(C, np.inf))
    with pytest.raises(UserError, match=r"compensation\.attn2\.bias is not finite"):
        Overlay(made.skip, {place: broken}).write(tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_weight_and_a_bias_are_folded_alike() -> None:
    weight, bias, x, t = RNG.normal(size=(C, 4)), RNG.normal(size=C), RNG.normal(size=(9, 4)), matrix()
    y = x @ weight.T + bias
    folded = x @ maps.folded(weight, t.factors[0]).T + maps.folded(bias, t.factors[0])
    np.testing.assert_allclose(folded, y + y @ t.factors[0])
