"""The number that says the width of an MLP."""

from __future__ import annotations

import pytest

from pipeline.ship.hf import ffn_width


@pytest.mark.parametrize(
    ("intermediate", "hidden", "mult"),
    [(11008, 4096, 4.03125), (14336, 4096, 5.25), (1536, 576, 4.0), (28672, 8192, 5.25), (8192, 2048, 6.0)],
)
def test_published_multipliers(intermediate: int, hidden: int, mult: float) -> None:
    assert ffn_width.multiplier(intermediate, hidden) == mult


def test_every_width_that_is_a_multiple_of_256_has_one() -> None:
    for hidden in (*range(64, 1024, 64), 576, 960, 2048, 3072, 4096, 5120, 7168, 8192, 16384):
        for intermediate in range(256, 8 * hidden, 256):
            mult = ffn_width.multiplier(intermediate, hidden)
            assert mult is not None
            assert ffn_width.width(mult, hidden) == ffn_width.width(round(mult, 6), hidden) == intermediate
    assert ffn_width.multiplier(1000, 512) is None
