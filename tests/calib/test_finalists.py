"""Swaps of a choice: as many sublayers of each kind, each once, in the rule's order or by distance."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calib import finalists
from pipeline.calib.selectors import Choice, Question, choose
from pipeline.types import SkipSet, UserError

LAYERS = 10


def names(skips: list[SkipSet]) -> list[str]:
    return [skip.name for skip in skips]


def ranked(*names: str) -> tuple[tuple[str, float], ...]:
    return tuple((name, 1 - k / 10) for k, name in enumerate(names))


COSINE = Choice(
    SkipSet((4, 5, 7)), chosen=ranked("attn5", "attn7", "attn4"), stays=ranked("attn9", "attn0", "attn1")
)


def test_swaps_follow_the_rules_order() -> None:
    """The last that was chosen for the first that stays; then the sum of both ranks."""
    assert names(finalists.swaps(COSINE, LAYERS, 4)) == ["attn5_7_9", "attn0_5_7", "attn4-5_9", "attn1_5_7"]
    # Those of the order are 9; by distance come the rest of 3 · 7.
    every = finalists.swaps(COSINE, LAYERS, 100)
    assert len(every) == 21 == len(set(every)) and "attn4-6" in names(every[9:])


def test_swaps_of_a_rule_without_an_order_are_of_near_layers() -> None:
    choice = choose("last", Question("mlp", 3, LAYERS, None))  # type: ignore[arg-type]
    assert names(finalists.swaps(choice, LAYERS, 4)) == ["mlp6_8-9", "mlp6-7_9", "mlp5_8-9", "mlp6-8"]
    scattered = Choice(SkipSet.of("block", (3, 6)))
    assert names(finalists.swaps(scattered, LAYERS, 4)) == ["block3_7", "block3_5", "block4_6", "block2_6"]


def test_a_swap_keeps_the_kinds() -> None:
    """Of a joint choice attention goes for attention, and MLP for MLP."""
    order = ("mlp7", "attn6", "attn3"), ("mlp2", "attn8", "mlp1")
    joint = Choice(SkipSet((3, 6), (7,)), chosen=ranked(*order[0]), stays=ranked(*order[1]))
    # Ranks from behind: attn3 0, attn6 1, mlp7 2; of those that stay mlp2 0, attn8 1, mlp1 2.
    assert names(finalists.swaps(joint, LAYERS, 4)) == [
        "attn6_8+mlp7",
        "attn3_8+mlp7",
        "attn3_6+mlp2",
        "attn3_6+mlp1",
    ]
    for skip in finalists.swaps(joint, LAYERS, 100):
        assert (len(skip.attention), len(skip.mlp)) == (2, 1)


def test_runs_are_swapped_for_runs_first() -> None:
    angular = Choice(
        SkipSet.of("block", (4, 5, 6)), chosen=ranked("block4-6"), stays=ranked("block5-7", "block1-3")
    )
    assert names(finalists.swaps(angular, LAYERS, 3)) == ["block5-7", "block1-3", "block4-5_7"]


@pytest.mark.parametrize("seed", range(20))
def test_every_swap_differs_in_one_and_comes_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [tuple(map(int, rng.permutation(LAYERS)[: rng.integers(1, LAYERS)])) for _ in range(2)]
    for skip in (SkipSet(*drawn), SkipSet(drawn[0], drawn[0]), SkipSet((), drawn[1])):
        swaps = finalists.swaps(Choice(skip), LAYERS, 1000)
        is_whole = skip.attention == skip.mlp
        sizes = [len(skip.attention), len(skip.mlp)]
        wanted = [n * (LAYERS - n) for n in (sizes[:1] if is_whole else sizes)]
        assert len(swaps) == len(set(swaps)) == sum(wanted) and skip not in swaps
        for other in swaps:
            changed = [set(other.attention) ^ set(skip.attention), set(other.mlp) ^ set(skip.mlp)]
            assert sorted(map(len, changed)) == ([2, 2] if is_whole else [0, 2])
            assert [len(other.attention), len(other.mlp)] == sizes


def test_runners_up_come_before_swaps() -> None:
    """A rule that measured enough of them has ranked them itself."""
    up = tuple((SkipSet((4, 5, layer)), layer / 10) for layer in (7, 8, 9))
    choice = Choice(up[0][0], chosen=COSINE.chosen, stays=COSINE.stays, runners_up=up)
    assert finalists.nominees(choice, LAYERS, 3) == ([skip for skip, _ in up], True)
    every, is_ranked = finalists.nominees(choice, LAYERS, 4)
    swaps = finalists.swaps(choice, LAYERS, 16)
    assert not is_ranked and every[:3] == [skip for skip, _ in up]
    assert len(every) == len(set(every)) and set(every) == {*swaps, *(skip for skip, _ in up)}


def test_the_choice_is_always_among_its_finalists() -> None:
    nominees, is_ranked = finalists.nominees(COSINE, LAYERS, 2)
    assert nominees[0] == COSINE.skip and len(nominees) == 9 and not is_ranked
    losses = {skip: 5.0 - k for k, skip in enumerate(nominees)}  # the choice is the worst
    assert finalists.finalists(COSINE.skip, losses, 2) == [nominees[8], COSINE.skip]
    assert finalists.finalists(COSINE.skip, losses, 1) == [COSINE.skip]
    best = {**losses, COSINE.skip: -9.0}
    assert finalists.finalists(COSINE.skip, best, 2) == [COSINE.skip, nominees[8]]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is left out"):
        finalists.nominees(Choice(SkipSet()), LAYERS, 2)
    whole = Choice(SkipSet.of("mlp", range(3)))
    assert finalists.nominees(whole, 3, 1) == ([whole.skip], True)
    with pytest.raises(UserError, match="--finalists 2 is more than there are: 1 skip set like mlp0-2"):
        finalists.nominees(whole, 3, 2)
    with pytest.raises(UserError, match="--finalists 5 is more than there are: 4 skip sets like attn0"):
        finalists.nominees(Choice(SkipSet((0,))), 4, 5)


def test_a_timed_choice_has_the_order_of_its_damage() -> None:
    damage = {SkipSet((0,)): 0.3, SkipSet((1,)): 0.1, SkipSet((), (0,)): 0.2, SkipSet((), (1,)): 0.05}
    choice = finalists.timed_choice(SkipSet((1,), (0,)), damage)
    assert choice.chosen == (("attn1", 0.1), ("mlp0", 0.2)) and choice.stays == (
        ("mlp1", 0.05),
        ("attn0", 0.3),
    )
    assert names(finalists.swaps(choice, 2, 9)) == ["block1", "block0"]
