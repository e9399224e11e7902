"""Masks of one cost, and the swaps between them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from pipeline.calib.evolution.space import Space
from pipeline.store.records import SublayerTimes
from pipeline.types import SkipSet, UserError

TIMES = SublayerTimes(whole=40.0, attn=1.0, mlp=2.7)
L = 10


def distance(one: SkipSet, other: SkipSet) -> int:
    """Sublayers that only one of them leaves out."""
    return len(set(one.attention) ^ set(other.attention)) + len(set(one.mlp) ^ set(other.mlp))


def test_the_front_is_that_of_brute_force() -> None:
    """All pairs of counts that save the time, and of which no fewer of either would."""
    for saved in (0.5, 3.0, 8.1, 13.3, 20.0, 36.9):
        enough = {
            (a, m) for a in range(L + 1) for m in range(L + 1) if a * TIMES.attn + m * TIMES.mlp >= saved
        }
        expected = {(a, m) for a, m in enough if (a - 1, m) not in enough and (a, m - 1) not in enough}
        space = Space.by_time("any", TIMES, saved, L)
        assert set(space.front) == expected and list(space.front) == sorted(space.front)
    with pytest.raises(UserError, match="saves less"):
        Space.by_time("any", TIMES, 37.1, L)


@pytest.mark.parametrize(("kind", "expected"), [("attn", 6), ("mlp", 3), ("block", 2)])
def test_a_time_of_one_kind_is_a_count(kind: str, expected: int) -> None:
    assert Space.by_time(kind, TIMES, 5.6, L) == Space.by_count(kind, expected, L)
    nothing = SublayerTimes(whole=40.0, attn=0.0, mlp=2.7)
    assert Space.by_time("any", nothing, 5.6, L).front == ((0, 3),)
    with pytest.raises(UserError, match="every attn saves less"):
        Space.by_time("attn", nothing, 5.6, L)


@pytest.mark.parametrize("kind", ["attn", "mlp", "block"])
def test_mutations_keep_the_count_and_swaps_are_few_more_often_than_many(kind: str) -> None:
    space, generator = Space.by_count(kind, 5, L), np.random.default_rng(0)
    parent = SkipSet.of(kind, range(5))
    swaps = Counter[int]()
    for _ in range(4000):
        child = space.mutated(parent, generator)
        assert child in space and child != parent
        swaps[distance(parent, child) // (4 if kind == "block" else 2)] += 1
    # min of two draws from 1..3: 5/9, 3/9, 1/9
    assert [swaps[k] / 4000 for k in (1, 2, 3)] == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.03)


def test_mutations_across_kinds_keep_the_time() -> None:
    space, generator = Space.by_time("any", TIMES, 8.1, L), np.random.default_rng(1)
    parent = SkipSet((0, 1, 2), (4, 5))
    assert parent in space
    reached = {space._counts(space._genes(parent))}
    for _ in range(2000):
        parent = space.mutated(parent, generator)
        assert parent in space and TIMES.of(parent) >= 8.1 and TIMES.of(parent) - TIMES.attn < 8.1
        reached.add(space._counts(space._genes(parent)))
    assert reached == set(space.front)


def test_draws_are_those_of_the_seed() -> None:
    space, parent = Space.by_count("mlp", 4, L), SkipSet((), (0, 1, 2, 3))
    one, two, other = (
        [space.mutated(parent, generator) for _ in range(20)]
        for generator in map(np.random.default_rng, ([7, 1], [7, 1], [7, 2]))
    )
    assert one == two != other


@pytest.mark.parametrize("count", [0, L])
def test_where_nothing_can_be_swapped_the_mask_stays(count: int) -> None:
    space, skip = Space.by_count("attn", count, L), SkipSet(tuple(range(count)))
    assert space.mutated(skip, np.random.default_rng(0)) == skip
    assert Space.by_count("attn", 9, L).mutated(SkipSet(tuple(range(9))), np.random.default_rng(0))


def test_membership_is_of_the_kind_and_the_cost() -> None:
    space = Space.by_count("mlp", 2, L)
    assert SkipSet((), (1, 2)) in space
    for other in (SkipSet((1, 2)), SkipSet((), (1,)), SkipSet((3,), (1, 2)), SkipSet((), (1, L))):
        assert other not in space
    assert SkipSet((1,), (1,)) in Space.by_count("block", 1, L)
    assert SkipSet((1,), (2,)) not in Space.by_count("block", 1, L)


def test_a_set_is_completed_by_what_does_least_damage() -> None:
    damage = {SkipSet.of(kind, [k]): k + 0.1 for kind in ("attn", "mlp") for k in range(L)}
    space = Space.by_count("mlp", 3, L)
    assert space.completed(SkipSet((), (7,)), damage) == SkipSet((), (0, 1, 7))
    assert space.completed(SkipSet((), (2, 4, 6, 8)), damage) == SkipSet((), (2, 4, 6))
    both = Space.by_time("any", TIMES, 8.5, L)
    assert both.front[:3] == ((0, 4), (1, 3), (4, 2))
    assert both.completed(SkipSet((5,), (4, 6)), damage) == SkipSet((5,), (0, 4, 6))
    whole = set(combinations(range(L), 3))
    assert all(space.completed(SkipSet((), one), damage) == SkipSet((), one) for one in whole)
    with pytest.raises(UserError, match="attn1 leaves out more than mlp"):
        space.completed(SkipSet((1,)), damage)
