from __future__ import annotations

import numpy as np
import pytest

from pipeline.runtime.cache import HostCache
from pipeline.runtime.generation.greedy import GreedyRow
from pipeline.runtime.generation.rows import Group, Row, end_row, is_cancelled

NAME = "past_key_values.0.key"


def row(*prompt: int) -> Row:
    return GreedyRow(0, list(prompt), 4, lambda _: False)


def written(*prompts: tuple[int, ...]) -> Group:
    """A group after its first pass: the cache holds its tokens, [B, 1, P, 1], and 9 comes next."""
    group = Group.of([row(*prompt) for prompt in prompts])
    group.cache = HostCache({NAME: group.next[:, None, :, None].astype(np.float32)}, *group.next.shape)
    group.mask, group.next = group.next_mask, np.full((len(prompts), 1), 9)
    group.next_mask = np.ones_like(group.next)
    return group


def test_rows_are_padded_on_the_left() -> None:
    group = Group.of([row(5), row(6, 7, 8)])
    assert group.next.tolist() == [[0, 0, 5], [6, 7, 8]] and group.next_mask.tolist() == [
        [0, 0, 1],
        [1, 1, 1],
    ]
    assert group.cache is None and group.mask.shape == (2, 0)


def test_padding_that_no_row_needs_goes_with_the_row_that_needed_it() -> None:
    group = written((5,), (6, 7, 8), (3, 4))
    group.keep([0, 2])
    assert group.mask.tolist() == [[0, 1], [1, 1]] and group.cache is not None
    assert group.cache.arrays()[NAME][:, 0, :, 0].tolist() == [[0, 5], [3, 4]]
    assert [list(r.prompt) for r in group.rows] == [[5], [3, 4]] and group.next.tolist() == [[9], [9]]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_groups_join_with_the_shorter_cache_padded(order: tuple[int, int]) -> None:
    groups = [written((5,)), written((6, 7, 8))]
    lines = [([0, 0, 1], [0, 0, 5]), ([1, 1, 1], [6, 7, 8])]
    group, other = (groups[k] for k in order)
    group.join(other)
    assert group.mask.tolist() == [lines[k][0] for k in order] and group.cache is not None
    assert group.cache.arrays()[NAME][:, 0, :, 0].tolist() == [lines[k][1] for k in order]
    assert len(group.rows) == 2 and group.next.shape == (2, 1)


class Broken(GreedyRow):
    """A row whose listener fails."""

    def cancelled(self) -> bool:
        raise ConnectionError("gone")

    def end(self, error: Exception | None = None) -> None:
        raise BrokenPipeError("gone")


def test_a_listener_that_fails_is_a_cancelled_row(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken(0, [5], 4, lambda _: False)
    assert is_cancelled(broken) and not is_cancelled(row(5))
    end_row(broken, RuntimeError("stop"))
    assert caplog.text.count("gone") == 2
    whole = GreedyRow(0, [5], 4, lambda _: False)
    end_row(whole, error := RuntimeError("stop"))
    assert whole.error is error and whole.done
