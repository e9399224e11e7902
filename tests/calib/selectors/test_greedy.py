"""The first removals of the order, with what they cost."""

from __future__ import annotations

import pytest

from pipeline.types import SkipSet
from tests.known_statistics import chosen


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("mlp", 2, "mlp4-5"),
        ("attn", 1, "attn5"),
        ("block", 6, "block0-5"),
    ],
)
def test_what_it_chooses(kind: str, count: int, expected: str) -> None:
    assert chosen("greedy", kind, count).skip.name == expected


def test_it_says_the_losses_and_the_work_that_was_saved() -> None:
    choice = chosen("greedy", "mlp", 2)
    assert choice.chosen == (("mlp5", 1.0), ("mlp4", 2.0)) and choice.stays == (("mlp0", 9.0),)
    assert choice.note.startswith("whole model: 0.5000; 1.0e+00 FLOPs, 67% less")


def test_the_last_step_gives_the_runners_up_with_all_that_went_before() -> None:
    choice = chosen("greedy", "mlp", 2)
    assert choice.runners_up == ((choice.skip, 2.0), (SkipSet((), (0, 5)), 9.0))
    assert chosen("greedy", "mlp", 0).runners_up == ()
