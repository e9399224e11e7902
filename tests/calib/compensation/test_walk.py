"""Passes that go on where the one before ended: what they see is what whole passes see."""

from __future__ import annotations

import numpy as np

from pipeline.calib.compensation import gathering, trial
from pipeline.calib.compensation.maps import LinearMap
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.walk import Walk
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import BASE, SkipSet


def test_a_walk_sees_what_whole_passes_see(reference: Reference, text: MomentsText) -> None:
    """With maps of a run and of a sublayer before the place, and weights that change below it."""
    rng = np.random.default_rng(0)
    run = MapPlace(0, 0, "block")
    mapped = {run: LinearMap((rng.normal(size=(64, 64)) / 8,), rng.normal(size=64))}
    middle, folded = MapPlace(1, 1, "mlp"), MapPlace(2, 2, "attn")
    more = mapped | {middle: LinearMap((), rng.normal(size=64))}
    name = "model.layers.1.self_attn.o_proj.weight"
    weights = {name: reference.model.get_parameter(name).detach() * 1.5}
    steps = [
        (run, Overlay(BASE), None),
        (MapPlace(1, 1, "attn"), Overlay(SkipSet.parse("block0"), mapped), None),
        (middle, Overlay(SkipSet.parse("block0"), mapped), None),
        (folded, Overlay(SkipSet.parse("block0+mlp1"), more), 1),
        (MapPlace(3, 3, "attn"), Overlay(SkipSet((0, 2), (0, 1)), more, weights), None),
    ]
    walk = Walk(reference, text.fitted)
    for place, earlier, layer in steps:
        seen = list(walk.to(place, earlier, layer))
        with trial.installed(reference, earlier):
            whole = [gathering.activations(reference, row, place) for row in text.fitted]
        for one, other in zip(seen, whole, strict=True):
            for name in ("h", "f", "y", "x"):
                mine, theirs = getattr(one, name), getattr(other, name)
                assert (mine is None) == (theirs is None), (place.name, name)
                if mine is not None:
                    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6, err_msg=place.name + name)
    assert reference.skip == BASE
