"""Continuous batching: requests join and leave one batch between its steps.

Legend: B rows, S new tokens, V vocabulary.

A step is one piece of the joining prompts, if there are any, and then one token for every row that writes. So
a long prompt delays the other texts by one piece at a time; and every other piece may be one of short prompts
that overtake it. The cache is bounded by what admitted rows may need at most: no admitted row can fail for
lack of room.

One request never harms another. What the embedding does not know is refused at the door; where the runner
refuses a batch, its rows go through one by one, and those that are refused again end with their error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.runtime.cache import Array, Cache, joined
from pipeline.runtime.generation.rows import Group, Row, end_row, is_cancelled
from pipeline.runtime.generation.waiting import Room, Waiting
from pipeline.runtime.runner import Runner
from pipeline.types import UserError

log = logging.getLogger(__name__)

PIECE = 256
"""Tokens of prompts that one pass takes, where the runner names no better number."""


class Batcher:
    """Requests in, tokens out, over one runner. Any thread may call `add`, one at a time `step`.

    Args:
        runner: a graph or an engine.
        rows: requests that run side by side at most.
        cache_tokens: tokens of keys and values that the batch may need at most: B times its longest row.
        queue: requests that wait at most; one more is refused. One share may fill half of it.
    """

    def __init__(self, runner: Runner, rows: int = 16, cache_tokens: int = 16_384, queue: int = 128) -> None:
        self.runner, self.waiting = runner, Waiting(queue)
        self.most_rows, self.cache_tokens = min(rows, runner.limits.batch), cache_tokens
        self.piece = min(runner.piece or PIECE, runner.limits.new)
        self.joining: Group | None = None
        self.overtaking: Group | None = None
        self.writing: Group | None = None
        self.has_overtaken = False
        self.steps = 0
        self.beat = time.monotonic()
        self._arrival = threading.Condition()

    def add(self, row: Row) -> None:
        """Lets a request wait for its turn.

        Raises:
            UserError: its prompt is empty or holds a token that the embedding has no row for, or it may need
                more cache than there is.
            QueueFull: too many wait.
        """
        if not row.prompt:
            raise UserError("the prompt holds no token")
        self._refuse_unknown("the prompt holds", row, row.prompt)
        limit = min(self.cache_tokens, self.runner.limits.past + 1)
        if row.most > limit:
            raise UserError(f"prompt and text may come to {row.most} tokens, and the cache holds {limit}")
        with self._arrival:
            self.waiting.add(row)
            self._arrival.notify()

    def wait(self, seconds: float) -> None:
        """Sleeps until there is something to do, or the seconds are over."""
        with self._arrival:
            if not self.busy:
                self._arrival.wait(seconds)

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.waiting or self._groups)

    @property
    def running(self) -> int:
        """Requests that have left the queue and are not finished."""
        return sum(len(group.rows) for group in self._groups)

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life: a call of `step`, or the end of a pass."""
        return time.monotonic() - self.beat

    def step(self) -> bool:
        """One piece of joining prompts and one token for each row that writes; False if there is nothing."""
        self.beat = time.monotonic()
        try:
            self._drop_leaving()
            group = self._next_to_join()
            if group is None and self.writing is None:
                return False
            self.steps += 1
            if group is not None:
                self._prefill(group)
            if self.writing is not None:
                self.writing = self._advance(self.writing, self._forward(self.writing, 1))
        except Exception as error:  # noqa: BLE001 - no memory to rearrange what is there: nothing can go on
            self._fail(error)
        return True

    def drain(self, error: Exception) -> None:
        """Ends every request, the waiting ones too."""
        with self._arrival:
            waiting = list(self.waiting)
            self.waiting.remove(waiting)
        self._end(waiting, error)
        self._fail(error)

    # ---- one step ---------------------------------------------------------------------------------------

    @property
    def _groups(self) -> list[Group]:
        return [group for group in (self.joining, self.overtaking, self.writing) if group is not None]

    def _drop_leaving(self) -> None:
        """Ends the rows that are cancelled, or whose time is over."""
        with self._arrival:
            waiting = list(self.waiting)
        leaving = [row for row in waiting if row.turn.is_over or is_cancelled(row)]  # asked without the lock
        if leaving:
            with self._arrival:
                self.waiting.remove(leaving)
        for group in self._groups:
            stays = [not (row.turn.is_over or is_cancelled(row)) for row in group.rows]
            leaving += [row for row, staying in zip(group.rows, stays, strict=True) if not staying]
            group.keep([line for line, staying in enumerate(stays) if staying])
        self.joining = self.joining if self.joining and self.joining.rows else None
        self.writing = self.writing if self.writing and self.writing.rows else None
        for row in leaving:
            end_row(row, row.turn.error)

    def _next_to_join(self) -> Group | None:
        """The group whose next piece this step takes: short prompts and the long one that joins in turns."""
        if self.joining is None:
            self.joining = self._admitted()
            return self.joining
        if self.has_overtaken:
            self.has_overtaken = False
            return self.joining
        self.overtaking = self._admitted(overtaking=True)
        self.has_overtaken = self.overtaking is not None
        return self.overtaking or self.joining

    def _admitted(self, overtaking: bool = False) -> Group | None:
        """The next requests that fit, in turns: as many short prompts as a piece takes, or a long one.

        Args:
            overtaking: take prompts alone that one pass takes whole.
        """
        running = [row for group in self._groups for row in group.rows]
        room = Room(self.most_rows, self.cache_tokens, self.piece)
        with self._arrival:
            chosen = room.admitted(self.waiting, running, overtaking)
        try:
            return Group.of(chosen) if chosen else None
        except MemoryError as error:
            self._end(chosen, error)
            return None

    def _prefill(self, group: Group) -> None:
        """One piece of the joining prompts; after the last piece their rows join those that write."""
        columns = max(1, self.piece // len(group.rows))
        logits = self._forward(group, columns)
        if group.rows and group.next.shape[1]:
            return
        if group is self.joining:
            self.joining = None
        self.overtaking = None
        joined = self._advance(group, logits)
        if joined is None:
            return
        if self.writing is None:
            self.writing = joined
            return
        try:
            self.writing.join(joined)
        except MemoryError as error:  # those that write need no more than they have
            self._end(joined.rows, error)

    def _forward(self, group: Group, columns: int) -> Array:
        """Puts the group's next columns through the model; the logits [B, V] after the last of them.

        Rows that the model refuses leave the group.
        """
        cache: Cache | None
        try:
            logits, cache = self._pass(group, columns)
        except Exception as error:  # noqa: BLE001 - the backends' exceptions share no base class
            log.warning("a pass of %d rows failed, each is tried alone: %s", len(group.rows), error)
            logits, cache = self._row_by_row(group, columns)
        group.cache, group.mask = cache, np.concatenate([group.mask, group.next_mask[:, :columns]], axis=1)
        group.next, group.next_mask = group.next[:, columns:], group.next_mask[:, columns:]
        return logits

    def _pass(self, group: Group, columns: int) -> tuple[Array, Cache]:
        """The logits [B, V] after the group's next columns, and its cache with them."""
        mask = np.concatenate([group.mask, group.next_mask[:, :columns]], axis=1)
        logits, cache = self.runner.forward(group.next[:, :columns], group.cache, attention_mask=mask)
        self.beat = time.monotonic()
        return logits[:, -1], cache

    def _row_by_row(self, group: Group, columns: int) -> tuple[Array, Cache | None]:
        """As `_pass`, each row by itself. What fails now ends; the others' columns stay where they are."""
        alone, lines = list[tuple[Array, Cache]](), list[int]()
        for line, row in enumerate(group.rows):
            try:
                alone.append(self._pass(group.part([line]), columns))
                lines.append(line)
            except Exception as error:  # noqa: BLE001 - as above
                end_row(row, error)
        rest = group.part(lines)
        group.rows, group.mask = rest.rows, rest.mask
        group.next, group.next_mask = rest.next, rest.next_mask
        if not alone:
            return np.zeros((0, 1), np.float32), None
        cache = joined([cache for _, cache in alone])
        return np.concatenate([logits for logits, _ in alone]), cache

    def _advance(self, group: Group, logits: Array) -> Group | None:
        """Every row picks its token from its logits [V]; rows that end leave. None if no row is left."""
        tokens = list[int | None]()
        for row, line in zip(group.rows, logits, strict=True):
            try:
                token = row.take(line)
                if token is not None:
                    self._refuse_unknown("the model wrote", row, [token])
                tokens.append(token)
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
        rows = [row for group in self._groups for row in group.rows]
        self.joining = self.overtaking = self.writing = None
        self._end(rows, error)

    def _end(self, rows: Iterable[Row], error: Exception) -> None:
        for row in rows:
            end_row(row, error)

    def _refuse_unknown(self, what: str, row: Row, tokens: Sequence[int]) -> None:
        token = self.runner.unknown(tokens)
        if token is not None:
            raise UserError(
                f"{what} {row.spelled(token)}, and the model's embedding has no row for it: "
                f"its {self.runner.vocabulary} rows begin at 0"
            )
