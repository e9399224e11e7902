"""LLM-Drop's lists: indices and booleans, and what is neither. (tests/cli/test_dropped.py runs them.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models import drop_lists
from pipeline.types import BASE, SkipSet, UserError

FILE = Path("config.json")


@pytest.mark.parametrize(
    ("attention", "mlp", "skip"),
    [
        ([3, 1], [2], SkipSet((1, 3), (2,))),
        ([False, True, False, True], [], SkipSet((1, 3))),
        ([0, 0], None, SkipSet((0,))),
        ([], [], BASE),
        ([False] * 4, False, BASE),
    ],
)
def test_skip_set(attention: object, mlp: object, skip: SkipSet) -> None:
    config = {"num_hidden_layers": 4, "drop_attn_list": attention, "drop_mlp_list": mlp}
    assert drop_lists.skip_set(config, FILE) == skip


def test_no_lists() -> None:
    assert drop_lists.skip_set({"num_hidden_layers": 4}, FILE) == BASE


@pytest.mark.parametrize("value", [[4], [-1], ["1"], [1.0], [None], {"1": True}, "1", True, [True, False]])
def test_what_is_no_list_of_layers_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^config\.json: drop_mlp_list "):
        drop_lists.skip_set({"num_hidden_layers": 4, "drop_mlp_list": value}, FILE)
