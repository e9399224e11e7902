"""Log-likelihoods of requests from a runner, in as few tokens and passes as their common prefixes allow.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.evals.score.batches import BatchLimits, BatchRow, pack
from pipeline.evals.score.caches import PrefixCache
from pipeline.evals.score.loglikelihoods import Answer, LogLikelihoods, ScoringError
from pipeline.evals.score.prefixes import Node, Request, tree
from pipeline.evals.score.work import Work
from pipeline.runtime.cache import Array, Cache, joined
from pipeline.runtime.runner import LOGIT_NUMBERS, Runner
from pipeline.types import first_line

UNBOUNDED = 1 << 30


class Scorer:
    """Log-likelihoods over one runner. Its prefix cache lives as long as it does.

    Args:
        runner: what runs.
        batch_tokens: tokens of a batch at most, padding included; a single row may have that many, too.
        memory: bytes of the prefix cache at most; a batch takes at most half as much again.
        reuse: False computes each request whole, as the harness's own backends do, and as a graph without a
            cache must.
    """

    def __init__(
        self, runner: Runner, batch_tokens: int = 2048, memory: int = 1 << 30, reuse: bool = True
    ) -> None:
        self.runner = runner
        self.heads = runner.heads
        self.batch_tokens = min(batch_tokens, runner.limits.new)
        self.prefixes = PrefixCache(memory)
        self.reuse = reuse
        self.work = Work()
        self.limits = BatchLimits(
            tokens=self.batch_tokens,
            rows=runner.limits.batch,
            logit_rows=max(1, LOGIT_NUMBERS // (max(runner.width or 1, 49152) * len(self.heads))),
            gathers=runner.gathers,
            token_bytes=runner.cache_bytes,
            cache_bytes=memory // 2,
            alone=(runner.piece or self.batch_tokens) // 2,
        )

    def run(self, requests: Sequence[Request], done: Callable[[int, Answer | ScoringError], None]) -> None:
        """Scores the requests; calls `done(index, answer or error)` as each is finished."""
        numbers = list[int]()
        for number, request in enumerate(requests):
            if (error := self._refused(request)) is None:
                numbers.append(number)
            else:
                done(number, error)
        known = [requests[number] for number in numbers]

        def finished(place: int, outcome: Answer | ScoringError) -> None:
            self.work.asked += len(known[place].tokens)
            done(numbers[place], outcome)

        sums = LogLikelihoods(known, self.heads, finished)
        stack = self._batches(self._uncached(self._tree(known)))
        while stack:
            # The children of a batch run next, so that their parents' caches can be dropped soon.
            ready = self._pass([self._row(node) for node in stack.pop()], sums)
            stack += self._batches(self._uncached(ready))

    def _refused(self, request: Request) -> ScoringError | None:
        """Why a request cannot run: a backend may read another token's row, or another row's logits."""
        sizes = ((request.tokens, self.runner.vocabulary), (request.targets, self.runner.width))
        for tokens, size in sizes:
            beyond = tokens[(tokens < 0) | (tokens >= (size or UNBOUNDED))]
            if beyond.size:
                return ScoringError(
                    f"it holds token {beyond[0]}, and the model knows {size} tokens from 0 on"
                )
        return None

    def _tree(self, requests: Sequence[Request]) -> list[Node]:
        if not self.reuse:
            return tree(requests, UNBOUNDED, UNBOUNDED, share=False)
        most_wanted = min(self.limits.logit_rows, self.runner.limits.wanted)
        longest = self.batch_tokens if self.runner.gathers else min(self.batch_tokens, most_wanted)
        return tree(requests, longest, most_wanted, piece=self.runner.piece)

    def _uncached(self, nodes: list[Node]) -> list[Node]:
        """The nodes that must run: where a node is cached whole and nothing is read on it, its children."""
        waiting = []
        for node in nodes:
            is_read = bool(node.wanted) or not node.children
            if not is_read and self.prefixes.longest(node.tokens, node.end)[0] == node.end:
                waiting += self._uncached(list(node.children))
            else:
                waiting.append(node)
        return waiting

    def _batches(self, nodes: list[Node]) -> list[list[Node]]:
        """The nodes in batches, the first to run last. Rows are made anew then: a cache may be gone."""
        batches = pack([self._row(node) for node in nodes], self.limits)
        return [[row.node for row in batch] for batch in reversed(batches)]

    def _row(self, node: Node) -> BatchRow:
        if not self.reuse:
            return BatchRow(node, 0, None)
        past, cache = self.prefixes.longest(node.tokens, min([*node.wanted, node.end - 1]))
        return BatchRow(node, past, cache)

    # ---- one forward pass ---------------------------------------------------------------------------------

    def _pass(self, rows: list[BatchRow], sums: LogLikelihoods) -> list[Node]:
        """Runs a batch → the nodes that are ready now. A batch that fails is run again row by row."""
        try:
            rows = [self._shortened(row) for row in rows] if len(rows) == 1 else rows
            logits, cache = self._forward(rows)
        except Exception as error:  # noqa: BLE001 - a backend's own exceptions share no other base class
            if len(rows) > 1:
                return [node for row in rows for node in self._pass([row], sums)]
            sums.fail(rows[0].node, ScoringError(first_line(error)))
            return []
        ready = []
        for number, row in enumerate(rows):
            sums.read(row.node, {head: values[number] for head, values in logits.items()})
            if row.node.children and cache is not None:
                self._keep(row, number, rows, cache)
                ready += row.node.children
            self._cool(row.node)
        return ready

    def _shortened(self, row: BatchRow) -> BatchRow:
        """The row with no more new tokens than a pass takes: a prefix that was dropped is computed again."""
        while self.reuse and row.new > self.batch_tokens and row.past < row.node.start:
            end = min(row.past + self.batch_tokens, row.node.start)
            prefix = Node(row.node.tokens[:end], row.past, None, children=[row.node])
            row = BatchRow(row.node, end, self._forward([BatchRow(prefix, row.past, row.cache)])[1])
        return row

    def _forward(self, rows: list[BatchRow]) -> tuple[dict[str, Array], Cache | None]:
        """Logits [B, K, V] of every head, and the cache of T tokens where a row has children."""
        batch, new, past = len(rows), max(row.new for row in rows), max(row.past for row in rows)
        ids = np.zeros((batch, new), np.int64)
        mask = np.zeros((batch, past + new), np.int64)
        positions = np.zeros((batch, new), np.int64)
        wanted = np.zeros((batch, max(1, *(len(row.node.wanted) for row in rows))), np.int64)
        for number, row in enumerate(rows):
            ids[number, : row.new] = row.node.tokens[row.past :]
            mask[number, past - row.past : past + row.new] = 1
            positions[number] = np.minimum(row.past + np.arange(new), row.node.end - 1)
            wanted[number, : len(row.node.wanted)] = [place - row.past for place in sorted(row.node.wanted)]
        one = self.runner.prepared(ids, self._pasts(rows, past), mask, positions, wanted)
        tokens = sum(row.new for row in rows)
        self.work.passes += 1
        self.work.tokens += tokens
        self.work.padding += batch * new - tokens
        return self.runner.step(one, any(row.node.children for row in rows))

    def _pasts(self, rows: list[BatchRow], past: int) -> Cache | None:
        """The rows' caches of P tokens as one, padded on the left."""
        if not past:
            return None
        empty = self.runner.empty_cache(1)
        return joined([row.cache or empty for row in rows])

    def _keep(self, row: BatchRow, number: int, rows: list[BatchRow], cache: Cache) -> None:
        """Puts the cache of one row, without its padding, into the prefix cache."""
        past = max(row.past for row in rows)
        self.prefixes.put(row.node.tokens, cache.part([number], past - row.past, past + row.new))

    def _cool(self, node: Node) -> None:
        """Counts a child as done; a parent whose last child is done is the first to make room."""
        if node.parent is not None:
            node.parent.children.remove(node)
            if not node.parent.children:
                self.prefixes.cool(node.parent.tokens)
