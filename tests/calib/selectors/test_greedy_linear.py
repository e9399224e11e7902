"""The first removals of the order with maps."""

from __future__ import annotations

from tests.known_statistics import chosen


def test_what_it_chooses() -> None:
    choice = chosen("greedy-linear", "mlp", 2)
    assert choice.skip.name == "mlp0-1" and choice.chosen == (("mlp0", 6.0), ("mlp1", 5.0))
    assert "linear map" in choice.statistic
