"""The control: drawn, seeded."""

from __future__ import annotations

from tests.known_statistics import chosen


def test_random_is_seeded_and_differs() -> None:
    draws = {chosen("random", "mlp", 3, seed=seed).skip for seed in range(20)}
    assert chosen("random", "mlp", 3, seed=4) == chosen("random", "mlp", 3, seed=4) and len(draws) > 5
    assert all(len(skip.mlp) == 3 and not skip.attention for skip in draws)
