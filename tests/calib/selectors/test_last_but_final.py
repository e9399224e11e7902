"""The n before the final layer."""

from __future__ import annotations

import pytest

from pipeline.types import UserError
from tests.known_statistics import chosen


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("block", 2, "block3-4"),
        ("attn", 1, "attn4"),
        ("mlp", 5, "mlp0-4"),
    ],
)
def test_what_it_chooses(kind: str, count: int, expected: str) -> None:
    assert chosen("last-but-final", kind, count).skip.name == expected


def test_it_cannot_leave_out_all_layers() -> None:
    with pytest.raises(UserError, match="at most 5 of 6 layers can go, not 6"):
        chosen("last-but-final", "mlp", 6)
