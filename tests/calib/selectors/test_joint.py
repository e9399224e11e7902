"""Attention and MLP sublayers in one pool."""

from __future__ import annotations

import pytest

from pipeline.types import UserError
from tests.known_statistics import chosen


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("block", 4, "attn2-4+mlp4"),
        ("block", 5, "attn2-4+mlp1_4"),
    ],
)
def test_what_it_chooses(kind: str, count: int, expected: str) -> None:
    assert chosen("joint", kind, count).skip.name == expected


def test_its_pool_holds_both_kinds() -> None:
    choice = chosen("joint", "block", 4)
    assert len(choice.chosen) == 4 and len(choice.stays) == 8
    with pytest.raises(UserError, match="take --kind block, not mlp"):
        chosen("joint", "mlp", 1)
