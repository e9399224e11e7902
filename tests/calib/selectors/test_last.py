"""The last n of the kind."""

from __future__ import annotations

import pytest

from tests.known_statistics import chosen


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("attn", 2, "attn4-5"),
        ("mlp", 1, "mlp5"),
        ("block", 3, "block3-5"),
    ],
)
def test_what_it_chooses(kind: str, count: int, expected: str) -> None:
    assert chosen("last", kind, count).skip.name == expected
