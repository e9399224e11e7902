"""Requests that wait for a place in the batch: those of one share in order, the shares in turns.

A share (`rows.Turn`) is what one client asked for at once. It counts as one in the turns, fills half of the
queue at most, and the last quarter of the batch is for shares that have no row in it: others find room.
Several long rows, whoever asked for them, leave room for one more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.runtime.generation.rows import NotServed, Row

Verdict = Literal["take", "skip", "stop"]
"""Of the row whose turn it is: it leaves the queue; its share waits; it waits, and nobody goes before it."""
OF_MANY = 0.75
"""Part of the rows and of the cache in which a share may have several rows; the rest is for first ones."""


class QueueFull(NotServed):
    """As many requests wait as may; the caller should try again later."""


class Waiting:
    """The queue. It is not locked: the batcher does that.

    Args:
        most: requests that wait at most; those of one share fill half of it at most.
    """

    def __init__(self, most: int) -> None:
        self.most, self.most_of_share = most, max(1, most // 2)
        self.count = 0
        self.lines: dict[str | int, deque[Row]] = {}
        """Share → its rows; the first share has the next turn."""

    def __len__(self) -> int:
        """Rows that wait."""
        return self.count

    def __iter__(self) -> Iterator[Row]:
        """All rows, share by share."""
        return (row for line in self.lines.values() for row in line)

    def add(self, row: Row) -> None:
        """Puts a row behind the others of its share.

        Raises:
            QueueFull: too many wait, in all or of this share.
        """
        if self.count >= self.most:
            raise QueueFull(f"the queue is full: {self.most} requests wait; try again later")
        share = row.turn.share or id(row)
        if len(self.lines.get(share, ())) >= self.most_of_share:
            raise QueueFull(
                f"the queue is full for this share: {self.most_of_share} of its requests wait, and the rest "
                f"of the {self.most} places is for others; try again later"
            )
        self.lines.setdefault(share, deque()).append(row)
        self.count += 1

    def take(self, verdict: Callable[[Row], Verdict]) -> None:
        """Removes rows in turns, one a share and round, as `verdict` says of each when its turn comes.

        A share whose row is taken goes behind all others; one that is skipped keeps its place.
        """
        taken, before = 0, -1
        while taken > before:  # another round, as long as the last one took something
            before = taken
            for share in list(self.lines):
                line = self.lines[share]
                answer = verdict(line[0])
                if answer == "stop":
                    return
                if answer == "take":
                    line.popleft()
                    taken += 1
                    self.count -= 1
                    del self.lines[share]
                    if line:
                        self.lines[share] = line

    def remove(self, rows: list[Row]) -> None:
        """Takes these rows out, wherever they stand."""
        gone = set(map(id, rows))
        left = {
            share: deque(row for row in line if id(row) not in gone) for share, line in self.lines.items()
        }
        self.lines = {share: line for share, line in left.items() if line}
        self.count = sum(map(len, self.lines.values()))


@dataclass(frozen=True, slots=True)
class Room:
    """What the batch has room for.

    Attributes:
        rows: B at most.
        cache_tokens: tokens of keys and values that the rows may need at most: B times the longest.
        piece: tokens of prompts that one pass takes.
    """

    rows: int
    cache_tokens: int
    piece: int

    def admitted(self, waiting: Waiting, running: list[Row], overtaking: bool) -> list[Row]:
        """The next rows, taken out of the queue: as many short prompts as a piece takes, or a long one.

        Args:
            waiting: the queue.
            running: rows that have left it.
            overtaking: take prompts alone that one pass takes whole.
        """
        chosen = list[Row]()

        def verdict(row: Row) -> Verdict:
            beside = [*running, *chosen]
            if len(beside) >= self.rows:
                return "stop"
            if (overtaking and len(row.prompt) > self.piece) or not self._leaves_room(row, beside):
                return "skip"
            width = max(len(other.prompt) for other in (row, *chosen))
            is_wide = bool(chosen) and (len(chosen) + 1) * width > self.piece
            if is_wide or not _fits([row, *beside], self.cache_tokens):
                return "stop"
            chosen.append(row)
            return "take"

        waiting.take(verdict)
        return chosen

    def _leaves_room(self, row: Row, beside: list[Row]) -> bool:
        """Whether it leaves the others their part: those of other shares, and short ones."""
        rows, share = [row, *beside], row.turn.share
        is_first = not share or all(other.turn.share != share for other in beside)
        if not is_first and (len(rows) > self.rows * OF_MANY or not _fits(rows, self.cache_tokens * OF_MANY)):
            return False
        # Short rows do not count here: a stream of them would keep a long one waiting for ever.
        long = [other for other in beside if self._is_long(other)]
        return not long or not self._is_long(row) or _fits([row, row, *long], self.cache_tokens)

    def _is_long(self, row: Row) -> bool:
        """Whether it may need more than its even part of the cache, so that not all places can be taken."""
        return row.most > self.cache_tokens / self.rows


def _fits(rows: list[Row], tokens: float) -> bool:
    """Whether rows side by side need so many tokens of cache at most."""
    return len(rows) * max(row.most for row in rows) <= tokens
