from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pipeline.evals.score.batches import BatchLimits, BatchRow, pack
from pipeline.evals.score.prefixes import PASS, Node

LIMITS = BatchLimits(
    tokens=1000, rows=100, logit_rows=1000, gathers=True, token_bytes=1, cache_bytes=10**6, alone=10**6
)


def row(new: int, past: int = 0, wanted: int = 1, children: int = 0) -> BatchRow:
    node = Node(np.arange(past + new, dtype=np.int32), past, None)
    node.wanted = {past + k: [(0, k)] for k in range(wanted)}
    node.children = [Node(np.arange(past + new + 1, dtype=np.int32), past + new, node)] * children
    return BatchRow(node, past, None)


def lengths(batches: list[list[BatchRow]]) -> list[list[int]]:
    return [[one.new for one in batch] for batch in batches]


def cost(sizes: list[list[int]]) -> int:
    return sum(len(batch) * max(batch) + PASS for batch in sizes)


def test_the_cost_is_the_least_of_all_ways_to_cut() -> None:
    sizes = sorted(np.random.default_rng(0).integers(1, 60, 9).tolist(), reverse=True)
    best = min(
        cost([sizes[a:b] for a, b in zip([0, *cuts], [*cuts, len(sizes)], strict=True)])
        for count in range(len(sizes))
        for cuts in combinations(range(1, len(sizes)), count)
    )
    batches = lengths(pack([row(new) for new in sizes], LIMITS))
    assert cost(batches) == best and [new for batch in batches for new in batch] == sizes


@pytest.mark.parametrize(
    ("changes", "rows", "sizes"),
    [
        ({"tokens": 25}, [row(10) for _ in range(5)], [[10, 10], [10, 10], [10]]),
        ({"rows": 3}, [row(4) for _ in range(4)], [[4, 4, 4], [4]]),
        ({"logit_rows": 6}, [row(5, wanted=3) for _ in range(4)], [[5, 5], [5, 5]]),
        ({"logit_rows": 10, "gathers": False}, [row(5) for _ in range(4)], [[5, 5], [5, 5]]),
        ({"cache_bytes": 40}, [row(5, past=15) for _ in range(4)], [[5, 5], [5, 5]]),
        ({"alone": 4}, [row(5, children=1) for _ in range(3)], [[5], [5], [5]]),
        ({"alone": 4}, [row(5) for _ in range(3)], [[5, 5, 5]]),
        ({"tokens": 8}, [row(10), row(9)], [[10], [9]]),  # one row runs, however long it is
    ],
)
def test_batches_are_within_the_limits(changes, rows, sizes) -> None:
    batches = lengths(pack(rows, replace(LIMITS, **changes)))
    assert sorted(batches) == sorted(sizes)


def test_nothing_makes_no_batch() -> None:
    assert pack([], LIMITS) == []
