from __future__ import annotations

import numpy as np

from pipeline.evals.score.caches import PrefixCache
from pipeline.runtime.cache import HostCache


def cache(size: int) -> HostCache:
    return HostCache({"k": np.zeros((1, 1, size, 1), np.int8)}, 1, size)


def tokens(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int32)


def test_the_least_recently_used_prefix_goes_first() -> None:
    prefixes = PrefixCache(100)
    for length in (3, 5, 7):
        prefixes.put(tokens(length), cache(40))
    assert prefixes.longest(tokens(7), 4)[0] == 0 and prefixes.longest(tokens(7), 7)[0] == 7  # 3 made room
    prefixes.longest(tokens(5), 5)
    prefixes.put(tokens(3), cache(40))
    assert prefixes.longest(tokens(7), 7)[0] == 5 and prefixes.currsize == 80  # 7 was used longer ago than 5


def test_a_cooled_prefix_goes_before_all_others_unless_it_is_used_again() -> None:
    prefixes = PrefixCache(100)
    prefixes.put(tokens(3), cache(40))
    prefixes.put(tokens(5), cache(40))
    prefixes.cool(tokens(5))
    prefixes.put(tokens(7), cache(40))
    assert {n for n in (3, 5, 7) if prefixes.longest(tokens(n), n)[0] == n} == {3, 7}
    prefixes.cool(tokens(3))
    assert prefixes.longest(tokens(3), 3)[0] == 3  # used again
    prefixes.longest(tokens(7), 7)
    prefixes.cool(tokens(7))
    prefixes.put(tokens(9), cache(40))
    assert {n for n in (3, 7, 9) if prefixes.longest(tokens(n), n)[0] == n} == {3, 9}
    prefixes.cool(tokens(4))  # not there
    assert len(prefixes) == 2


def test_what_is_larger_than_all_the_room_is_not_kept() -> None:
    prefixes = PrefixCache(100)
    prefixes.put(tokens(3), cache(40))
    prefixes.put(tokens(5), cache(101))
    assert prefixes.longest(tokens(5), 5)[0] == 3 and prefixes.currsize == 40
    nothing = PrefixCache(0)
    nothing.put(tokens(3), cache(1))
    assert nothing.longest(tokens(3), 3) == (0, None)


def test_a_prefix_is_found_by_its_tokens_and_within_the_length_asked_for() -> None:
    prefixes = PrefixCache(1000)
    kept = cache(10)
    prefixes.put(tokens(4), kept)
    prefixes.put(tokens(4), cache(20))  # there already
    assert prefixes.longest(tokens(9), 9) == (4, kept)
    assert prefixes.longest(tokens(9), 3) == (0, None)
    assert prefixes.longest(tokens(9)[::-1], 9) == (0, None)
