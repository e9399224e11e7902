"""Options that belong to evo alone."""

from __future__ import annotations

import pytest

from pipeline.calib.evolution.options import EvoOptions
from pipeline.types import UserError


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (EvoOptions(start="mlp1"), "--start"),
        (EvoOptions(compensated=True), "--compensated"),
        (EvoOptions(minutes=2.0), "--minutes"),
        (EvoOptions(generations=0), "--generations"),
    ],
)
def test_they_are_refused_with_another_rule(options: EvoOptions, word: str) -> None:
    with pytest.raises(UserError, match=f"{word} belongs to --select evo, and the rule is greedy"):
        options.belong_to("greedy")
    EvoOptions().belong_to("greedy")


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(minutes: float) -> None:
    with pytest.raises(UserError, match="is not a number above 0"):
        EvoOptions(minutes=minutes).belong_to("evo")
    with pytest.raises(UserError, match="--generations 0 is not at least 1"):
        EvoOptions(generations=0).belong_to("evo")
    EvoOptions(minutes=0.5, generations=1).belong_to("evo")
