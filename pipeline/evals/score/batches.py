"""The requests' log-likelihoods from a runner, in as few tokens and passes as their common prefixes allow.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, V vocabulary.

A row of a batch is a node of the radix tree: its tokens go through the model behind the cache of its prefix. Rows with
different prefixes share a batch: caches are padded on the left, new tokens on the right, the mask leaves both out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.evals.score.caches import PrefixCache
from pipeline.evals.score.prefixes import PASS, Node, Request, tree
from pipeline.runtime.runner import Array, Cache, Runner
from pipeline.types import Failed

Answer = dict[str, tuple[float, bool]]
"""Head → (log-likelihood in nats, whether greedy decoding would write the continuation). A variant's graph has the one head ''."""

LOGIT_ROWS = 1024
"""Rows of logits that one pass gives at most: 200 MB at 49,152 words in fp32."""


class ScoringError(Failed):
    """One request could not be scored: the reason. The others go on."""


@dataclass(slots=True)
class Work:
    """What went through the model.

    Attributes:
        tokens: input tokens, without padding.
        padding: padded ones.
        passes: forward passes.
        asked: tokens that one forward pass per request would take.
    """

    tokens: int = 0
    padding: int = 0
    passes: int = 0
    asked: int = 0


@dataclass(slots=True)
class _Row:
    """A node, ready to run."""

    node: Node
    past: int
    cache: Cache | None

    @property
    def new(self) -> int:
        return self.node.end - self.past


class Scorer:
    """Log-likelihoods over one runner; its prefix cache lives as long as it does.

    Args:
        batch_tokens: tokens of a batch, padding included (a single row may have that many, too).
        memory: bytes of the prefix cache at most; a batch takes at most half as much again.
        reuse: False computes each request whole, as the harness's own backends do, and as a graph without a cache must.
    """

    def __init__(
        self, runner: Runner, batch_tokens: int = 2048, memory: int = 1 << 30, reuse: bool = True
    ) -> None:
        self.runner = runner
        self.heads = runner.heads
        self.batch_tokens = min(batch_tokens, runner.limits.new)
        self.memory = memory
        self.token_bytes = runner.cache_bytes
        self.prefixes = PrefixCache(memory)
        self.reuse = reuse
        self.work = Work()
        self.logit_rows = max(1, LOGIT_ROWS // len(self.heads))

    def run(self, requests: Sequence[Request], done: Callable[[int, Answer | ScoringError], None]) -> None:
        """Scores the requests; calls `done(index, answer or error)` as each is finished."""
        state = _State(requests, self.heads, done)
        self.work.asked += sum(len(request.tokens) for request in requests)
        batches = self._batches(self._open(self._tree(requests)))
        while batches:
            # What a batch makes ready comes next, so that caches are soon done with.
            freed = self._pass([self._row(node) for node in batches.pop()], state)
            batches += self._batches(self._open(freed))

    def _tree(self, requests: Sequence[Request]) -> list[Node]:
        if not self.reuse:
            return tree(requests, 1 << 30, 1 << 30, share=False)
        most_wanted = min(self.logit_rows, self.runner.limits.wanted)
        longest = self.batch_tokens if self.runner.gathers else min(self.batch_tokens, most_wanted)
        return tree(requests, longest, most_wanted, piece=self.runner.piece)

    def _open(self, nodes: list[Node]) -> list[Node]:
        """The nodes, or, where a prefix is known from earlier requests and nothing is read on it, its children."""
        opened = []
        for node in nodes:
            if (
                node.children
                and not node.wanted
                and self.prefixes.longest(node.tokens, node.end)[0] == node.end
            ):
                opened += self._open(list(node.children))
            else:
                opened.append(node)
        return opened

    # ---- which rows run together ------------------------------------------------------------------------------------

    def _batches(self, nodes: list[Node]) -> list[list[Node]]:
        """The nodes in batches of like length, the first to run last: as few tokens as can be, padding and passes included.

        By dynamic programming over the rows, longest first: a batch costs its rows times its longest, and PASS.
        """
        rows = sorted(
            (self._row(node) for node in nodes),
            key=lambda row: (-row.new, -row.past, row.node.tokens.tobytes()),
        )
        costs, ends = [0] * (len(rows) + 1), [0] * len(rows)
        for first in range(len(rows) - 1, -1, -1):
            costs[first] = 1 << 62
            for end in self._ends(rows, first):
                cost = (end - first) * rows[first].new + PASS + costs[end]
                if cost < costs[first]:
                    costs[first], ends[first] = cost, end
        batches, first = [], 0
        while first < len(rows):
            batches.append([row.node for row in rows[first : ends[first]]])
            first = ends[first]
        return batches[::-1]

    def _ends(self, rows: list[_Row], first: int) -> list[int]:
        """Where a batch that begins at row `first` may end: before a shorter row, or where no more rows fit."""
        end, past, wanted, kept, found = first, 0, 1, False, list[int]()
        alone = rows[first].new > (self.runner.piece or self.batch_tokens) // 2
        while end < len(rows):
            past, wanted = max(past, rows[end].past), max(wanted, len(rows[end].node.wanted))
            kept |= bool(rows[end].node.children)
            # A long piece gains little by company, and its cache would have to be copied out of the batch.
            if end > first and (
                (alone and kept) or not self._fits(end + 1 - first, rows[first].new, past, wanted)
            ):
                break
            end += 1
            if end == len(rows) or rows[end].new < rows[end - 1].new:
                found.append(end)
        return found if found and found[-1] == end else [*found, end]

    def _fits(self, rows: int, new: int, past: int, wanted: int) -> bool:
        return (
            rows * new <= self.batch_tokens
            and rows <= self.runner.limits.batch
            and rows * (wanted if self.runner.gathers else new) <= self.logit_rows
            and rows * (past + new) * self.token_bytes <= self.memory // 2
        )

    def _row(self, node: Node) -> _Row:
        if not self.reuse:
            return _Row(node, 0, None)
        past, cache = self.prefixes.longest(node.tokens, min([*node.wanted, node.end - 1]))
        return _Row(node, past, cache)

    # ---- one forward pass -------------------------------------------------------------------------------------------

    def _pass(self, rows: list[_Row], state: _State) -> list[Node]:
        """Runs a batch → the nodes that have become ready. A batch that fails is run again row by row."""
        try:
            rows = [self._shortened(row) for row in rows] if len(rows) == 1 else rows
            logits, cache = self._forward(rows)
        except (
            Exception
        ) as error:  # a backend's own exceptions share no other base class; the row's requests carry it on
            if len(rows) > 1:
                return [node for row in rows for node in self._pass([row], state)]
            state.fail(rows[0].node, ScoringError(" ".join(str(error).split()) or type(error).__name__))
            return []
        freed = []
        for number, row in enumerate(rows):
            state.read(row.node, {head: values[number] for head, values in logits.items()})
            if row.node.children:
                self._keep(row, number, rows, cache)
                freed += row.node.children
            self._cool(row.node)
        return freed

    def _shortened(self, row: _Row) -> _Row:
        """The row, with no more new tokens than a pass takes: where its prefix was dropped, that is computed again."""
        while self.reuse and row.new > self.batch_tokens and row.past < row.node.start:
            end = min(row.past + self.batch_tokens, row.node.start)
            piece = _Row(
                Node(row.node.tokens[:end], row.past, None, children=[row.node]), row.past, row.cache
            )
            row = _Row(row.node, end, self._forward([piece])[1])
        return row

    def _forward(self, rows: list[_Row]) -> tuple[dict[str, Array], Cache]:
        """Logits [B, K, V] of every head, and the cache [B, G, T, D] where a row has children."""
        batch, new, past = len(rows), max(row.new for row in rows), max(row.past for row in rows)
        ids = np.zeros((batch, new), np.int64)
        mask = np.zeros((batch, past + new), np.int64)
        positions = np.zeros((batch, new), np.int64)
        wanted = np.zeros((batch, max(1, *(len(row.node.wanted) for row in rows))), np.int64)
        for number, row in enumerate(rows):
            ids[number, : row.new] = row.node.tokens[row.past :]
            mask[number, past - row.past : past + row.new] = 1
            positions[number] = np.minimum(row.past + np.arange(new), row.node.end - 1)
            asked = [position - row.past for position in sorted(row.node.wanted)]
            wanted[number, : len(asked)] = asked
        feeds = self.runner.feeds(ids, self._pasts(rows, past), mask, positions, wanted)
        self.work.passes += 1
        self.work.tokens += sum(row.new for row in rows)
        self.work.padding += batch * new - sum(row.new for row in rows)
        return self.runner.step(feeds, wanted, any(row.node.children for row in rows))

    def _pasts(self, rows: list[_Row], past: int) -> Cache | None:
        """The rows' caches as one, padded on the left: [B, G, P, D]."""
        if not past:
            return None
        if len(rows) == 1:
            return rows[0].cache
        empty = self.runner.empty_cache(1)
        pasts = {
            name: np.zeros((len(rows), array.shape[1], past, array.shape[3]), array.dtype)
            for name, array in empty.items()
        }
        for number, row in enumerate(rows):
            for name, array in (row.cache or {}).items():
                pasts[name][number, :, past - row.past :] = array[0]
        return pasts

    def _keep(self, row: _Row, number: int, rows: list[_Row], cache: Cache) -> None:
        past = max(row.past for row in rows)
        mine = slice(past - row.past, past + row.new)
        one = {name: array[number : number + 1, :, mine] for name, array in cache.items()}
        self.prefixes.put(
            row.node.tokens, one if len(rows) == 1 else {name: array.copy() for name, array in one.items()}
        )

    def _cool(self, node: Node) -> None:
        """Counts a child as done; a parent whose last child is done makes room first."""
        if node.parent is not None:
            node.parent.children.remove(node)
            if not node.parent.children:
                self.prefixes.cool(node.parent.tokens)


@dataclass(slots=True)
class _State:
    """The answers so far."""

    requests: Sequence[Request]
    heads: Sequence[str]
    done: Callable[[int, Answer | ScoringError], None]
    sums: Array = field(init=False)
    greedy: Array = field(init=False)
    left: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = len(self.requests), len(self.heads)
        self.sums, self.greedy = np.zeros(shape), np.ones(shape, bool)
        self.left = np.array([len(request.targets) for request in self.requests], np.int64)

    def read(self, node: Node, logits: dict[str, Array]) -> None:
        """Takes from a node's logits [K, V] what its wanted positions tell."""
        for row, position in enumerate(sorted(node.wanted)):
            asked = node.wanted[position]
            targets = np.array([self.requests[number].targets[index] for number, index in asked])
            numbers = [number for number, _ in asked]
            for head, name in enumerate(self.heads):
                scores = logits[name][row].astype(np.float32, copy=False)
                best = int(scores.argmax())
                spread = float(np.log(np.exp(scores - scores[best]).sum(dtype=np.float64)))
                np.add.at(
                    self.sums,
                    (numbers, head),
                    scores[targets].astype(np.float64) - float(scores[best]) - spread,
                )
                np.logical_and.at(self.greedy, (numbers, head), targets == best)
            for number in numbers:
                self._count(number)

    def _count(self, number: int) -> None:
        self.left[number] -= 1
        if self.left[number]:
            return
        if not np.isfinite(self.sums[number]).all():
            self.done(number, ScoringError("the logits are not finite"))
            return
        pairs = zip(self.sums[number].tolist(), self.greedy[number].tolist(), strict=True)
        self.done(number, dict(zip(self.heads, pairs, strict=True)))

    def fail(self, node: Node, error: ScoringError) -> None:
        """Every request that needs this node is lost."""
        for number in node.requests:
            if self.left[number] > 0:
                self.left[number] = -1
                self.done(number, error)
