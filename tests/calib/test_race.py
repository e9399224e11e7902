"""Candidates that leave a race, and those that must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.calib import race
from pipeline.models.reference import FAST, Reference
from pipeline.types import SkipSet, UserError
from tests import tiny


def test_the_race_drops_only_what_is_behind_beyond_doubt() -> None:
    names = [SkipSet.of("mlp", [k]) for k in range(4)]
    rng = np.random.default_rng(0)
    common = rng.normal(3, 1, 400)  # positions differ far more than candidates
    losses = {one.name: common + 0.01 * k + rng.normal(0, 0.1, 400) for k, one in enumerate(names)}
    losses[names[3].name] = common + 1
    few, many = ({name: np.split(values[:n], 2) for name, values in losses.items()} for n in (40, 400))
    assert race.still_racing(names, few) == names[:3]  # 0.02 apart, 0.022 a standard error
    assert race.still_racing(names, many) == names[:2]


def test_a_race_counts_its_work_and_gives_all_candidates(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, num_hidden_layers=6)
    tokens = np.random.default_rng(0).integers(3, 96, (4, 12))
    one = race.Race(Reference(folder, load=FAST), "attn", tokens)
    step = one.run(SkipSet((1,)))
    assert {step.removed, *(name for name, *_ in step.others)} == {f"attn{k}" for k in (0, 2, 3, 4, 5)}
    assert 0 < one.flops < one.plain_flops
    with pytest.raises(UserError, match="no attn is left"):
        one.run(SkipSet(tuple(range(6))))
