"""What a selector reads before it can choose."""

from __future__ import annotations

import pytest

from pipeline.calib import selectors
from pipeline.sweep.rules import reads
from pipeline.types import UserError

READ = {
    "last": None,
    "last-but-final": None,
    "random": None,
    "cosine": "calibrate",
    "angular": "calibrate",
    "joint": "calibrate",
    "evo": "both",
    "greedy": "measure",
    "greedy-linear": "measure",
    "residual": "measure",
}


@pytest.mark.parametrize("rule", selectors.names())
def test_what_a_rule_reads_is_learnt_by_running_it(rule: str) -> None:
    assert reads(rule, "block") == READ[rule]


def test_a_rule_that_does_not_choose_a_kind_says_so() -> None:
    with pytest.raises(UserError, match="angular"):
        reads("angular", "attn")
