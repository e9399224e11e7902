"""The block over which the stream turns least: distances 0, 3, 5, 5.5, 6, 9, 20 along the model."""

from __future__ import annotations

import pytest

from pipeline.types import UserError
from tests.known_statistics import Known, chosen


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("block", 1, "block3"),
        ("block", 2, "block2-3"),
        ("block", 3, "block1-3"),
    ],
)
def test_what_it_chooses(kind: str, count: int, expected: str) -> None:
    assert chosen("angular", kind, count).skip.name == expected


def test_of_equally_near_blocks_the_deeper_goes_and_all_are_listed() -> None:
    choice = chosen("angular", "block", 1)
    assert [name for name, _ in (*choice.chosen, *choice.stays)][:2] == ["block3", "block2"]
    distances = [value for _, value in choice.chosen + choice.stays]
    assert distances == pytest.approx([0.005, 0.005, 0.02, 0.03, 0.03, 0.11])
    assert len(chosen("angular", "block", 2).stays) == 4  # five blocks of two fit into six layers


def test_it_reads_the_mean_where_it_is_told_to() -> None:
    flat = Known(tokens="mean")  # all distances 0: the deepest block
    assert chosen("angular", "block", 2, statistics=flat).skip.name == "block4-5"


@pytest.mark.parametrize("kind", ["attn", "mlp"])
def test_it_takes_whole_layers_only(kind: str) -> None:
    with pytest.raises(UserError, match=f"take --kind block, not {kind}"):
        chosen("angular", kind, 1)
