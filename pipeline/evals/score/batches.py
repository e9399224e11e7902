"""Which nodes of the radix tree run together: batches of few tokens and few passes.

Legend: B rows of a batch, S new tokens, P cached tokens, K positions whose logits are wanted.

A row of a batch is a node: its tokens go through the model behind the cache of its prefix. Rows with
different prefixes share a batch: caches are padded on the left, new tokens on the right, and the mask leaves
both out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evals.score.prefixes import PASS, Node
from pipeline.runtime.cache import Cache

INFINITE = 1 << 62


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A node, ready to run.

    Attributes:
        node: whose tokens are computed.
        past: P, the tokens of its prefix that are cached.
        cache: their keys and values; None where P is 0.
    """

    node: Node
    past: int
    cache: Cache | None

    @property
    def new(self) -> int:
        """S, the tokens that go through the model."""
        return self.node.end - self.past


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one forward pass may take.

    Attributes:
        tokens: B · S at most.
        rows: B at most.
        logit_rows: B · K at most; B · S where the runner gives the logits of every position.
        gathers: whether the runner gives the logits of wanted positions only.
        token_bytes: keys and values of one token.
        cache_bytes: B · (P + S) · token_bytes at most.
        alone: a row of more new tokens than this runs alone where its cache is kept: it gains little by
            company, and its cache would have to be copied out of the batch.
    """

    tokens: int
    rows: int
    logit_rows: int
    gathers: bool
    token_bytes: int
    cache_bytes: int
    alone: int

    def hold(self, rows: int, new: int, past: int, wanted: int) -> bool:
        """Whether a batch of B = rows, S = new, P = past and K = wanted is within the limits."""
        return (
            rows * new <= self.tokens
            and rows <= self.rows
            and rows * (wanted if self.gathers else new) <= self.logit_rows
            and rows * (past + new) * self.token_bytes <= self.cache_bytes
        )


def pack(rows: Sequence[BatchRow], limits: BatchLimits) -> list[list[BatchRow]]:
    """The rows in batches whose cost is least, padding and passes included; the longest rows first.

    By dynamic programming over the rows, longest first: a batch costs its rows times its longest, and PASS.
    """
    ordered = sorted(rows, key=lambda row: (-row.new, -row.past, row.node.tokens.tobytes()))
    costs, ends = [0] * (len(ordered) + 1), [0] * len(ordered)
    for first in range(len(ordered) - 1, -1, -1):
        costs[first] = INFINITE
        for end in _ends(ordered, first, limits):
            cost = (end - first) * ordered[first].new + PASS + costs[end]
            if cost < costs[first]:
                costs[first], ends[first] = cost, end
    batches, first = list[list[BatchRow]](), 0
    while first < len(ordered):
        batches.append(ordered[first : ends[first]])
        first = ends[first]
    return batches


def _ends(rows: list[BatchRow], first: int, limits: BatchLimits) -> list[int]:
    """Where a batch that begins at row `first` may end: before a shorter row, or where no more rows fit."""
    ends, end, past, wanted, keeps_cache = list[int](), first, 0, 1, False
    while end < len(rows):
        past, wanted = max(past, rows[end].past), max(wanted, len(rows[end].node.wanted))
        keeps_cache |= bool(rows[end].node.children)
        is_alone = rows[first].new > limits.alone and keeps_cache
        if end > first and (is_alone or not limits.hold(end + 1 - first, rows[first].new, past, wanted)):
            break
        end += 1
        if end == len(rows) or rows[end].new < rows[end - 1].new:
            ends.append(end)
    return ends if ends and ends[-1] == end else [*ends, end]
