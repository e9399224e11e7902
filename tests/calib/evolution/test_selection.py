"""One generation: two comparisons, and the parent among the last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.calib.evolution import selection
from pipeline.calib.evolution.space import Space
from pipeline.types import SkipSet

L, N = 12, 16
SPACE = Space.by_count("mlp", 4, L)
PARENT = SkipSet((), (0, 1, 2, 3))


class Sums:
    """Divergences that are known: a set's is the sum of its layers, on every sequence."""

    tokens = np.zeros((N, 4), np.int64)

    def __init__(self) -> None:
        self.calls: list[tuple[list[SkipSet], list[int]]] = []

    def measure(self, skips: list[SkipSet], rows: Any = None) -> np.ndarray:
        wanted = list(range(N)) if rows is None else list(rows)
        self.calls.append((list(skips), wanted))
        return np.array([[float(sum(skip.mlp)) for _ in wanted] for skip in skips])


def run(parent: SkipSet, value: float, known: dict[str, float] | None = None, seed: int = 0):
    divergences = Sums()
    generation = selection.next_generation(
        SPACE, known or {}, (parent.name, value), divergences, np.random.default_rng(seed)
    )
    return generation, divergences.calls


def test_the_best_few_of_a_first_comparison_are_measured_on_all() -> None:
    generation, ((children, few), (finalists, every)) = run(SkipSet((), (8, 9, 10, 11)), 38.0)
    assert len(children) == len(set(children)) == selection.OFFSPRING and all(
        one in SPACE for one in children
    )
    assert len(few) == len(set(few)) == N // 8 and every == list(range(N))
    best = sorted(sum(one.mlp) for one in children)[: selection.FINALISTS]
    assert sorted(sum(one.mlp) for one in finalists) == best
    assert [value for _, value in generation.measured] == best
    assert (generation.best, generation.value) == generation.measured[0] and generation.value == best[0]


def test_the_parent_stays_where_none_is_better() -> None:
    generation, _ = run(PARENT, 6.0)  # 0 + 1 + 2 + 3: the least there is
    assert (generation.best, generation.value) == (PARENT.name, 6.0)
    assert all(value > 6.0 for _, value in generation.measured)
    equal, _ = run(SkipSet((), (8, 9, 10, 11)), 0.0)
    assert equal.best == "mlp8-11"


def test_what_was_measured_to_the_end_is_not_drawn_again() -> None:
    first, _ = run(PARENT, 6.0)
    known = {PARENT.name: 6.0, **dict(first.measured)}
    _, ((children, _), _) = run(PARENT, 6.0, known)
    assert not {one.name for one in children} & set(known)
    small = Space.by_count("mlp", 1, 3)
    names = {f"mlp{k}": 1.0 for k in range(3)}
    assert selection.next_generation(
        small, names, ("mlp0", 1.0), Sums(), np.random.default_rng(0)
    ) is None  # fmt: skip


def test_sequences_of_the_first_comparison_are_drawn_anew() -> None:
    rows = {tuple(run(PARENT, 6.0, seed=seed)[1][0][1]) for seed in range(12)}
    assert len(rows) > 3 and max(row for pair in rows for row in pair) > 8
    assert run(PARENT, 6.0, seed=3) == run(PARENT, 6.0, seed=3)


@pytest.mark.parametrize(("samples", "expected"), [(1, 1), (8, 1), (15, 1), (32, 4)])
def test_an_eighth_of_the_sequences_comes_first(samples: int, expected: int) -> None:
    assert selection.first_rows(samples) == expected
