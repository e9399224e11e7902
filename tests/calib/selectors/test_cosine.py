"""The sublayers of the kind that change the stream least."""

from __future__ import annotations

import pytest

from tests.known_statistics import chosen


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("attn", 2, "attn3-4"),
        ("mlp", 2, "mlp1_4"),
        ("block", 1, "block3"),
    ],
)
def test_what_it_chooses(kind: str, count: int, expected: str) -> None:
    assert chosen("cosine", kind, count).skip.name == expected


def test_it_shows_every_candidate_by_its_cosine() -> None:
    choice = chosen("cosine", "mlp", 2)
    assert choice.chosen == (("mlp4", 0.98), ("mlp1", 0.9))
    assert choice.stays == (("mlp3", 0.5), ("mlp2", 0.4), ("mlp5", 0.2), ("mlp0", 0.1))
    assert "cosine" in choice.statistic
