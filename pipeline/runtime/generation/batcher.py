"""Continuous batching: requests join and leave one batch between its steps.

Legend: B rows, S new tokens, V vocabulary.

A step is one piece of the joining prompts, if there are any, and then one token for every row that writes. So
a long prompt delays the other texts by one piece at a time. The cache is bounded by what admitted rows may
need at most: no admitted row can fail for lack of room.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from pipeline.runtime.generation.rows import Group, Row, end_row, is_cancelled
from pipeline.runtime.runner import Array, Runner
from pipeline.types import UserError

PIECE = 256
"""Tokens of prompts that one pass takes, where the runner names no better number."""


class QueueFull(RuntimeError):
    """As many requests wait as may; the caller should try again later."""


class Batcher:
    """Requests in, tokens out, over one runner. Any thread may call `add`, one at a time `step`.

    Args:
        runner: a graph or an engine.
        rows: requests that run side by side at most.
        cache_tokens: tokens of keys and values that the batch may need at most: B times its longest row.
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
        self._arrival = threading.Condition()

    def add(self, row: Row) -> None:
        """Lets a request wait for its turn.

        Raises:
            UserError: its prompt is empty, or it may need more cache than there is.
            QueueFull: too many wait.
        """
        if not row.prompt:
            raise UserError("the prompt holds no token")
        limit = min(self.cache_tokens, self.runner.limits.past + 1)
        if row.most > limit:
            raise UserError(f"prompt and text may come to {row.most} tokens, and the cache holds {limit}")
        with self._arrival:
            if len(self.waiting) >= self.queue:
                raise QueueFull(f"the queue is full: {self.queue} requests wait; try again later")
            self.waiting.append(row)
            self._arrival.notify()

    def wait(self, seconds: float) -> None:
        """Sleeps until there is something to do, or the seconds are over."""
        with self._arrival:
            if not self.busy:
                self._arrival.wait(seconds)

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.waiting or self.joining or self.writing)

    @property
    def running(self) -> int:
        """Requests that have left the queue and are not finished."""
        return sum(len(group.rows) for group in (self.joining, self.writing) if group)

    def step(self) -> bool:
        """One piece of joining prompts and one token for every writing row; False if there was nothing to do.

        An error of the runner ends every request in the batch; those that wait are not affected.
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
                self.writing = self._advance(self.writing, self._forward(self.writing, 1))
        except Exception as error:  # noqa: BLE001 - the backends' exceptions share no base class
            self._fail(error)
        return True

    def drain(self, error: Exception) -> None:
        """Ends every request, the waiting ones too."""
        with self._arrival:
            waiting, self.waiting = list(self.waiting), deque()
        for row in waiting:
            end_row(row, error)
        self._fail(error)

    # ---- one step ---------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        with self._arrival:
            cancelled = [row for row in self.waiting if is_cancelled(row)]
            for row in cancelled:
                self.waiting.remove(row)
        for group in (self.joining, self.writing):
            if group is not None:
                leaves = [is_cancelled(row) for row in group.rows]
                cancelled += [row for row, leaving in zip(group.rows, leaves, strict=True) if leaving]
                group.keep([line for line, leaving in enumerate(leaves) if not leaving])
        self.joining = self.joining if self.joining and self.joining.rows else None
        self.writing = self.writing if self.writing and self.writing.rows else None
        for row in cancelled:
            end_row(row)

    def _admitted(self) -> Group | None:
        """The next requests that fit, in order: as many short prompts as a piece takes, or a long one."""
        running = self.writing.rows if self.writing else []
        longest, chosen = max((row.most for row in running), default=0), list[Row]()
        with self._arrival:
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
        """One piece of the joining prompts; after the last piece their rows join those that write."""
        columns = max(1, self.piece // len(group.rows))
        logits = self._forward(group, columns)
        if group.next.shape[1]:
            return
        joined = self._advance(group, logits)
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

    def _advance(self, group: Group, logits: Array) -> Group | None:
        """Every row picks its token from its logits [V]; rows that end leave. None if no row is left."""
        tokens = list[int | None]()
        for row, line in zip(group.rows, logits, strict=True):
            try:
                tokens.append(row.take(line))
            except Exception as error:  # noqa: BLE001 - of this row alone: its logits, or its listener
                end_row(row, error)
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
            end_row(row, error)
