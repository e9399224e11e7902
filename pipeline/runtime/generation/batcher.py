"""Continuous batching: requests join and leave one batch between its steps.

Legend: B rows, S new tokens, P cached tokens, G key/value heads, D head dimension, V vocabulary.

Rows of different lengths stand side by side padded on the left, in the cache as in the mask. A step is one piece of the
prompts that are joining, if any are, and then one token for every row that is writing: a long prompt holds no text up
for longer than a piece takes. The cache is bounded by what admitted rows may come to need at most, so that no
row that was let in can fail for lack of room.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.runtime.runner import Array, Cache, Runner
from pipeline.types import UserError

log = logging.getLogger(__name__)
PIECE = 256
"""Tokens of prompts that one pass takes, where the runner names no better number."""


class QueueFull(RuntimeError):
    """As many requests wait as may; the caller should come again."""


class Row(Protocol):
    """A request, as the batcher sees it.

    Attributes:
        prompt: its tokens.
        most: tokens that prompt and text have together at most.
    """

    @property
    def prompt(self) -> Sequence[int]: ...

    @property
    def most(self) -> int: ...

    def cancelled(self) -> bool: ...

    def take(self, logits: Array) -> int | None:
        """Picks the next token from its logits [V]; None where the text ends with it."""

    def end(self, error: Exception | None = None) -> None:
        """Told that it ends before its time: cancelled, or with an error."""


@dataclass(slots=True)
class Group:
    """Rows side by side, their cache and what goes in next.

    Attributes:
        rows: B of them.
        cache: past_key_values.{i}.key|value → [B, G, P, D]; None before the first pass.
        mask: [B, P] int64, 0 = padding; of what is cached.
        next: [B, S] int64, tokens that are not cached yet; a joining group's are padded on the left.
        next_mask: [B, S] int64.
    """

    rows: list[Row]
    cache: Cache | None
    mask: Array
    next: Array
    next_mask: Array

    @classmethod
    def of(cls, rows: list[Row]) -> Group:
        longest = max(len(row.prompt) for row in rows)
        ids, mask = np.zeros((2, len(rows), longest), np.int64)
        for line, row in enumerate(rows):
            ids[line, longest - len(row.prompt) :] = row.prompt
            mask[line, longest - len(row.prompt) :] = 1
        return cls(rows, None, np.zeros((len(rows), 0), np.int64), ids, mask)

    def keep(self, lines: list[int]) -> None:
        """Only these lines stay; columns that are padding for all of them go."""
        if len(lines) == len(self.rows):
            return
        mask = self.mask[lines]
        used = mask.any(axis=0)
        first = int(used.argmax()) if used.any() else mask.shape[1]
        self.rows = [self.rows[line] for line in lines]
        self.next, self.next_mask, self.mask = self.next[lines], self.next_mask[lines], mask[:, first:]
        if self.cache is not None:
            self.cache = {name: array[lines, :, first:] for name, array in self.cache.items()}

    def join(self, other: Group) -> None:
        """Takes another group's rows in; the shorter cache is padded on the left."""
        past = max(self.mask.shape[1], other.mask.shape[1])
        self.rows = self.rows + other.rows
        self.mask = np.concatenate([_padded(self.mask, 1, past), _padded(other.mask, 1, past)])
        self.next = np.concatenate([self.next, other.next])
        self.next_mask = np.concatenate([self.next_mask, other.next_mask])
        mine, theirs = self.cache or {}, other.cache or {}
        self.cache = {
            name: np.concatenate([_padded(mine[name], 2, past), _padded(theirs[name], 2, past)])
            for name in mine
        }


class Batcher:
    """Requests in, tokens out, over one runner. `add` may be called from any thread, `step` from one at a time.

    Args:
        runner: a graph or an engine.
        rows: requests that run side by side at most.
        cache_tokens: tokens of keys and values that the batch may come to need, padding included (B times its longest row).
        queue: requests that wait at most; one more is refused.
    """

    def __init__(self, runner: Runner, rows: int = 16, cache_tokens: int = 16_384, queue: int = 128) -> None:
        self.runner, self.queue = runner, queue
        self.most_rows, self.cache_tokens = min(rows, runner.limits.batch), cache_tokens
        self.piece = min(runner.piece or PIECE, runner.limits.new)
        self.waiting: deque[Row] = deque()
        self.joining: Group | None = None
        self.writing: Group | None = None
        self.steps = 0
        self._came = threading.Condition()

    def add(self, row: Row) -> None:
        """Lets a request wait for its turn.

        Raises:
            UserError: its prompt is empty, or it may come to need more cache than there is.
            QueueFull: too many wait.
        """
        if not row.prompt:
            raise UserError("the prompt holds no token")
        limit = min(self.cache_tokens, self.runner.limits.past + 1)
        if row.most > limit:
            raise UserError(f"prompt and text may come to {row.most} tokens, and the cache holds {limit}")
        with self._came:
            if len(self.waiting) >= self.queue:
                raise QueueFull(f"the queue is full: {self.queue} requests wait; try again later")
            self.waiting.append(row)
            self._came.notify()

    def wait(self, seconds: float) -> None:
        """Sleeps until there is something to do, at most so long."""
        with self._came:
            if not self.busy:
                self._came.wait(seconds)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.joining or self.writing)

    @property
    def running(self) -> int:
        """Requests that have left the queue and are not finished."""
        return sum(len(group.rows) for group in (self.joining, self.writing) if group)

    def step(self) -> bool:
        """One piece of joining prompts and one token for every writing row; False where there was nothing to do.

        An error of the runner ends every request that was in the batch with it; those that wait are not touched.
        """
        try:
            self._drop_cancelled()
            if self.joining is None:
                self.joining = self._admitted()
            if self.joining is None and self.writing is None:
                return False
            self.steps += 1
            if self.joining is not None:
                self._prefill(self.joining)
            if self.writing is not None:
                self.writing = self._taken(self.writing, self._forward(self.writing, 1))
        except Exception as error:  # the backend's own, which share no base class
            self._fail(error)
        return True

    def drain(self, error: Exception) -> None:
        """Ends every request, the waiting ones too."""
        with self._came:
            waiting, self.waiting = list(self.waiting), deque()
        for row in waiting:
            _end(row, error)
        self._fail(error)

    # ---- one step ---------------------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        with self._came:
            gone = [row for row in self.waiting if _is_gone(row)]
            for row in gone:
                self.waiting.remove(row)
        for group in (self.joining, self.writing):
            if group is not None:
                left = [_is_gone(row) for row in group.rows]
                gone += [row for row, is_gone in zip(group.rows, left, strict=True) if is_gone]
                group.keep([line for line, is_gone in enumerate(left) if not is_gone])
        self.joining = self.joining if self.joining and self.joining.rows else None
        self.writing = self.writing if self.writing and self.writing.rows else None
        for row in gone:
            _end(row)

    def _admitted(self) -> Group | None:
        """The next requests that fit, in the order they came: as many short prompts as one piece takes, or one long one."""
        running = self.writing.rows if self.writing else []
        longest, chosen = max((row.most for row in running), default=0), list[Row]()
        with self._came:
            while self.waiting and len(running) + len(chosen) < self.most_rows:
                row = self.waiting[0]
                longest = max(longest, row.most)
                width = max(len(row.prompt), *(len(other.prompt) for other in chosen), 0)
                if (len(running) + len(chosen) + 1) * longest > self.cache_tokens:
                    break
                if chosen and (len(chosen) + 1) * width > self.piece:
                    break
                chosen.append(self.waiting.popleft())
        return Group.of(chosen) if chosen else None

    def _prefill(self, group: Group) -> None:
        """One piece of the joining prompts; after the last they join those that write."""
        columns = max(1, self.piece // len(group.rows))
        logits = self._forward(group, columns)
        if group.next.shape[1]:
            return
        joined = self._taken(group, logits)
        if joined is not None and self.writing is not None:
            self.writing.join(joined)
        elif joined is not None:
            self.writing = joined
        self.joining = None

    def _forward(self, group: Group, columns: int) -> Array:
        """Puts the group's next columns through the model; the logits [B, V] after the last of them."""
        ids, new = group.next[:, :columns], group.next_mask[:, :columns]
        mask = np.concatenate([group.mask, new], axis=1)
        logits, group.cache = self.runner.forward(ids, group.cache, attention_mask=mask)
        group.mask, group.next, group.next_mask = mask, group.next[:, columns:], group.next_mask[:, columns:]
        return logits[:, -1]

    def _taken(self, group: Group, logits: Array) -> Group | None:
        """Every row picks its token from its logits [V]; those that end leave."""
        tokens = list[int | None]()
        for row, line in zip(group.rows, logits, strict=True):
            try:
                tokens.append(row.take(line))
            except Exception as error:  # of this row alone: its logits, or the one who listens
                _end(row, error)
                tokens.append(None)
        stay = [line for line, token in enumerate(tokens) if token is not None]
        if not stay:
            return None
        group.keep(stay)
        group.next = np.array([[tokens[line]] for line in stay], np.int64)
        group.next_mask = np.ones_like(group.next)
        return group

    def _fail(self, error: Exception) -> None:
        rows = [row for group in (self.joining, self.writing) if group for row in group.rows]
        self.joining = self.writing = None
        for row in rows:
            _end(row, error)


def _end(row: Row, error: Exception | None = None) -> None:
    """Tells a row that it ends; a listener that breaks over it hurts no other row."""
    try:
        row.end(error)
    except Exception as broken:  # the listener's own, such as a connection that is closed
        log.warning("a request that ended could not be told: %s", broken)


def _is_gone(row: Row) -> bool:
    """Whether it was cancelled; one that cannot be asked any more counts as cancelled."""
    try:
        return row.cancelled()
    except Exception as broken:  # the listener's own
        log.warning("a request that cannot be asked is cancelled: %s", broken)
        return True


def _padded(array: Array, axis: int, size: int) -> Array:
    """The array with zeros before it along an axis, up to a size."""
    if array.shape[axis] == size:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (size - array.shape[axis], 0)
    return np.pad(array, widths)
