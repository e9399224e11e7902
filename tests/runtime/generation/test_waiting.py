"""Whose turn is next, and that a big request does not hold up a small one: counted in steps of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines import opening
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.runtime.generation.batcher import Batcher
from pipeline.runtime.generation.greedy import GreedyRow
from pipeline.runtime.generation.rows import TimeOver, Turn
from pipeline.runtime.generation.waiting import QueueFull, Room, Waiting
from tests import tiny


class Request(GreedyRow):
    """A row of so many prompt tokens and new ones, of a share; counts how often it is asked for."""

    def __init__(self, share: str = "", prompt: int = 2, new: int = 2, seconds: float = 1e9) -> None:
        super().__init__(0, [5 + number % 200 for number in range(prompt)], new, lambda _: False)
        self.turn, self.asked = Turn(share, seconds), 0

    def cancelled(self) -> bool:
        self.asked += 1
        return False


def queue(*shares: str, most: int = 100) -> tuple[Waiting, list[Request]]:
    rows, waiting = [Request(share) for share in shares], Waiting(most)
    for row in rows:
        waiting.add(row)
    return waiting, rows


def shares(rows: list[Any]) -> str:
    return " ".join(row.turn.share or "-" for row in rows)


def test_shares_take_turns_and_rows_without_one_are_a_share_each() -> None:
    waiting, _ = queue("a", "a", "a", "b", "b", "", "", "c")
    order = [Room(1, 1000, 256).admitted(waiting, [], overtaking=False) for _ in range(8)]
    assert [shares(rows) for rows in order] == ["a", "b", "-", "-", "c", "a", "b", "a"]
    assert len(waiting) == 0 and not list(waiting) and not waiting.lines


def test_a_share_has_three_quarters_of_the_rows_and_others_the_rest() -> None:
    waiting, _ = queue(*["a"] * 30, "b")
    first = Room(8, 1000, 256).admitted(waiting, [], overtaking=False)
    assert shares(first) == "a b a a a a"  # six of eight
    late = [Request(share) for share in ("c", "c", "d", "e")]
    for row in late:
        waiting.add(row)
    assert Room(8, 1000, 256).admitted(waiting, first, overtaking=False) == [late[0], late[2]]
    assert len(waiting) == 27


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_share_has_at_least_one_row(rows: int) -> None:
    waiting, _ = queue("a", "a", "a")
    assert len(Room(rows, 1000, 256).admitted(waiting, [], overtaking=False)) == max(1, int(rows * 0.75))


def test_a_share_has_three_quarters_of_the_cache_and_its_first_row_all() -> None:
    waiting, long = Waiting(10), [Request("a", 20, 5) for _ in range(5)]
    for row in long:
        waiting.add(row)
    assert Room(16, 100, 256).admitted(waiting, [], overtaking=False) == long[:3]
    waiting = Waiting(9)
    waiting.add(Request("a", 20, 80))
    assert len(Room(16, 100, 256).admitted(waiting, [], overtaking=False)) == 1


def test_what_does_not_fit_keeps_its_turn() -> None:
    """A small row behind it does not take the room that it waits for, or it would wait for ever."""
    waiting, running = Waiting(9), [Request("x", 20, 5)]
    large, small = Request("a", 60, 5), Request("b")
    waiting.add(large)
    waiting.add(small)
    room = Room(4, 100, 256)
    assert room.admitted(waiting, running, overtaking=False) == []
    assert room.admitted(waiting, [], overtaking=False) == [large]


def test_long_rows_leave_room_for_a_short_one() -> None:
    """Whoever asked for them: five requests for a quarter of the cache each kept one for a token out."""
    waiting, long, short = Waiting(9), [Request("", 2, 238) for _ in range(5)], Request("", 2, 2)
    for row in [*long, short]:
        waiting.add(row)
    room = Room(16, 1000, 256)
    assert room.admitted(waiting, [], overtaking=False) == [*long[:3], short]
    assert room.admitted(waiting, long[:3], overtaking=False) == []
    assert room.admitted(waiting, long[:2], overtaking=False) == [long[3]]  # it had kept its turn


def test_a_long_row_is_not_kept_waiting_by_short_ones() -> None:
    waiting, large, short = Waiting(9), Request("", 2, 898), [Request() for _ in range(3)]
    for row in [large, *short]:
        waiting.add(row)
    room = Room(16, 1000, 256)
    assert room.admitted(waiting, [Request("", 2, 200)], overtaking=False) == short  # another long one runs
    waiting.add(late := Request())
    assert room.admitted(waiting, short, overtaking=False) == []  # now they end, and none joins
    assert room.admitted(waiting, [], overtaking=False) == [large] and list(waiting) == [late]


def test_a_share_fills_half_of_the_queue() -> None:
    waiting, _ = queue(*["a"] * 5, most=10)
    with pytest.raises(QueueFull, match=r"full for this share: 5 of its requests wait.*the 10 places"):
        waiting.add(Request("a"))
    for share in ("b", "", "", "", ""):
        waiting.add(Request(share))
    with pytest.raises(QueueFull, match="the queue is full: 10 requests wait"):
        waiting.add(Request("c"))
    waiting, _ = queue("a", most=1)
    assert len(waiting) == 1


def test_removed_rows_leave_the_others_in_order() -> None:
    waiting, rows = queue("a", "a", "b", "a", "")
    waiting.remove([rows[0], rows[2], rows[4]])
    assert list(waiting) == [rows[1], rows[3]] and len(waiting) == 2


class Noted:
    """A runner that only notes the passes [B, S]; every logit is that of token 9."""

    def __init__(self, piece: int = 256) -> None:
        from pipeline.runtime.cache import HostCache
        from pipeline.runtime.runner import Limits

        self.limits, self.piece, self.passes, self.cache = Limits(), piece, list[tuple[int, int]](), HostCache

    def unknown(self, tokens: Any) -> None:
        return None

    def forward(self, ids: Any, cache: Any, attention_mask: Any) -> Any:
        self.passes.append(ids.shape)
        array = np.zeros((ids.shape[0], 1, attention_mask.shape[1], 1), np.float32)
        logits = np.zeros((*ids.shape, 10), np.float32)
        logits[..., 9] = 1
        return logits, self.cache({"past_key_values.0.key": array}, *attention_mask.shape)


def test_short_prompts_overtake_a_long_one_that_joins() -> None:
    """The long one (40 pieces) takes every other step at least, and is not held up by any number of them."""
    runner = Noted(piece=10)
    batcher, long = Batcher(runner, rows=4, queue=300), Request("long", 400, 3)
    batcher.add(long)
    batcher.step()
    assert batcher.joining is not None
    short = Request("short", 4, 2)
    batcher.add(short)
    batcher.step()
    assert len(short.tokens) == 2 and not long.tokens  # its prompt and its second token, in one step
    for _ in range(200):
        batcher.add(Request("", 4, 1))
    steps = 0
    while not long.tokens:
        batcher.step()
        steps += 1
    assert 38 <= steps <= 80


def test_a_step_asks_each_waiting_row_once() -> None:
    batcher, rows = Batcher(Noted(), rows=4, queue=200), [Request(new=400) for _ in range(200)]
    for row in rows:
        batcher.add(row)
    for _ in range(10):
        batcher.step()
    assert {row.asked for row in rows} == {10}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_row_whose_time_is_over_ends_waiting_joining_or_writing(steps: int) -> None:
    batcher, late = Batcher(Noted(piece=10), rows=1), Request("", 20, 50, seconds=60)
    batcher.add(late)
    other = Request("", 4, 100)
    for _ in range(steps):
        batcher.step()
    late.turn = Turn(seconds=60, since=late.turn.since - 61)
    batcher.add(other)
    batcher.step()
    assert isinstance(late.error, TimeOver)
    assert str(late.error) == "the request took longer than 60 s (request_timeout)"
    assert other.tokens and other.error is None and batcher.running == 1


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tiny.checkpoint(
        tmp_path_factory.mktemp("fair") / "m", vocab_size=tiny.WORDS, max_position_embeddings=4096
    )
    yield opening.open_runner(export.export_base(checkpoint.open_checkpoint(folder)))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("after", [1, 2, 9, 40])
def test_two_requests_of_sixty_prompts_leave_a_short_one_its_turn(after: int, runner: Any) -> None:
    """120 prompts of 300 tokens with 64 new ones; two tokens of another share are there four steps later."""
    batcher = Batcher(runner, queue=128)
    for share in ("one", "two"):
        for _ in range(60):
            batcher.add(Request(share, 300, 64))
    for _ in range(after):
        batcher.step()
    short, steps = Request("three", 2, 2), batcher.steps
    batcher.add(short)
    alone = Request("", 2, 2)
    while not short.done:
        batcher.step()
    assert batcher.steps - steps <= 4 and short.error is None
    by_itself = Batcher(runner)
    by_itself.add(alone)
    while by_itself.step():
        pass
    assert short.tokens == alone.tokens


def test_one_share_of_long_texts_leaves_rows_for_others(runner: Any) -> None:
    batcher, texts = Batcher(runner, rows=8), [Request("one", 30, 500) for _ in range(60)]
    for row in texts:
        batcher.add(row)
    for _ in range(30):
        batcher.step()
    assert batcher.running == 6 and sum(bool(row.tokens) for row in texts) == 6
    short, steps = Request("two", 2, 2), batcher.steps
    batcher.add(short)
    while not short.done:
        batcher.step()
    assert batcher.steps - steps <= 4
