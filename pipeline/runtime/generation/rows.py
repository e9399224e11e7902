"""Requests side by side in one batch, and their cache.

Legend: B rows, S new tokens, P cached tokens, G key/value heads, D head dimension, V vocabulary.

Rows of different lengths are padded on the left, in the cache as in the mask.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipeline.runtime.cache import Array, Cache, joined

log = logging.getLogger(__name__)


class NotServed(RuntimeError):
    """Nothing is wrong with the request: there is no room, no time or no model for it now."""


class TimeOver(NotServed):
    """A request waited and ran for longer than it may."""


@dataclass(frozen=True, slots=True)
class Turn:
    """When a request's turn comes, and when its time is over.

    Attributes:
        share: rows of one share take turns with all others as if they were one; '' is a share of its own.
        seconds: that it may wait and run, together.
        since: when it came, by the monotonic clock.
    """

    share: str = ""
    seconds: float = math.inf
    since: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        """Whether its time is."""
        return time.monotonic() - self.since > self.seconds

    @property
    def error(self) -> TimeOver | None:
        """What a request is told whose time is over."""
        limit = f"{self.seconds:g} s (request_timeout)"
        return TimeOver(f"the request took longer than {limit}") if self.is_over else None


class Row(Protocol):
    """A request, as the batcher sees it.

    Attributes:
        prompt: its tokens.
        most: tokens that prompt and text have together at most.
        turn: when it is served.
    """

    @property
    def prompt(self) -> Sequence[int]: ...  # noqa: D102 - described above

    @property
    def most(self) -> int: ...  # noqa: D102 - described above

    @property
    def turn(self) -> Turn: ...  # noqa: D102 - described above

    def cancelled(self) -> bool:
        """Whether nobody waits for its text any more."""

    def take(self, logits: Array) -> int | None:
        """Picks the next token from its logits [V]; None where the text ends with it."""

    def spelled(self, token: int) -> str:
        """The token as its user knows it, for errors."""

    def end(self, error: Exception | None = None) -> None:
        """Ends it early: it was cancelled, or an error stopped it."""


@dataclass(slots=True)
class Group:
    """Rows side by side, their cache and their next tokens.

    Attributes:
        rows: B of them.
        cache: of P tokens; None before the first pass.
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
        """The rows before their first pass."""
        longest = max(len(row.prompt) for row in rows)
        ids, mask = np.zeros((2, len(rows), longest), np.int64)
        for line, row in enumerate(rows):
            ids[line, longest - len(row.prompt) :] = row.prompt
            mask[line, longest - len(row.prompt) :] = 1
        return cls(rows, None, np.zeros((len(rows), 0), np.int64), ids, mask)

    def part(self, lines: list[int]) -> Group:
        """These rows by themselves, every column as it is here."""
        cache = None if self.cache is None else self.cache.part(lines)
        rows = [self.rows[line] for line in lines]
        return Group(rows, cache, self.mask[lines], self.next[lines], self.next_mask[lines])

    def keep(self, lines: list[int]) -> None:
        """Drops all rows but these, and columns that are padding in all of these."""
        if len(lines) == len(self.rows):
            return
        mask = self.mask[lines]
        used = mask.any(axis=0)
        first = int(used.argmax()) if used.any() else mask.shape[1]
        if self.cache is not None:  # first, because it alone may find no memory
            self.cache = self.cache.part(lines, first)
        self.rows = [self.rows[line] for line in lines]
        self.next, self.next_mask, self.mask = self.next[lines], self.next_mask[lines], mask[:, first:]

    def join(self, other: Group) -> None:
        """Adds another group's rows; the shorter cache is padded on the left."""
        assert self.cache is not None and other.cache is not None, "groups join after their first pass"
        self.cache = joined([self.cache, other.cache])  # first, because it alone may find no memory
        past = self.cache.tokens
        self.rows = self.rows + other.rows
        self.mask = np.concatenate([_padded(self.mask, past), _padded(other.mask, past)])
        self.next = np.concatenate([self.next, other.next])
        self.next_mask = np.concatenate([self.next_mask, other.next_mask])


def end_row(row: Row, error: Exception | None = None) -> None:
    """Ends a row; an error of its listener is logged, and does not reach other rows."""
    try:
        row.end(error)
    except Exception as broken:  # noqa: BLE001 - the listener's own, such as a closed connection
        log.warning("a request ended, and its listener failed: %s", broken)


def is_cancelled(row: Row) -> bool:
    """Whether a row is cancelled; one whose listener fails counts as cancelled."""
    try:
        return row.cancelled()
    except Exception as broken:  # noqa: BLE001 - the listener's own
        log.warning("a request is cancelled, because its listener failed: %s", broken)
        return True


def _padded(mask: Array, size: int) -> Array:
    """A mask [B, P] with zeros before it, up to a size."""
    return np.pad(mask, ((0, 0), (size - mask.shape[1], 0)))
