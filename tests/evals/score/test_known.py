from __future__ import annotations

import pytest

from pipeline.evals.score import known
from pipeline.types import UserError


def test_known_names_are_taken() -> None:
    known.refuse_unknown("--x", ["threads", "device"], ["threads", "fresh"], ["device"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("thread", "did you mean threads"),
        ("devise", "did you mean device"),
        ("xyz", "it takes threads, fresh"),
    ],
)
def test_others_are_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"--x has no '{name}'; {hint}"):
        known.refuse_unknown("--x", ["threads", name], ["threads", "fresh"], ["device"])


def test_the_names_of_lm_evals_own_tasks_are_read_once() -> None:
    names = known.of_harness()
    assert {"hellaswag", "mmlu_anatomy"} <= set(names) and known.of_harness() is names
