"""The sublayers that a linear map can stand in for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.calib import selectors
from tests.known_statistics import chosen


def test_what_it_chooses() -> None:
    choice = chosen("residual", "mlp", 2)
    assert choice.skip.name == "mlp3_5"  # of two equal ones the deeper
    assert choice.chosen == (("mlp3", 0.01), ("mlp5", 0.02))
    assert choice.stays == (("mlp1", 0.02), ("mlp2", 0.2), ("mlp0", 0.3), ("mlp4", 0.4))


@pytest.mark.slow
def test_its_statistics_are_gathered_where_they_are_missing(folder: Path) -> None:
    statistics = selectors.ModelStatistics(folder, samples=24, length=16)
    choice = chosen("residual", "block", 1, layers=4, statistics=statistics)
    assert len(choice.chosen + choice.stays) == 4
    assert sorted(path.stem for path in Path("calib/tiny/moments").glob("*.json")) == sorted(
        f"{kind}{layer}" for kind in ("attn", "mlp") for layer in range(4)
    )
