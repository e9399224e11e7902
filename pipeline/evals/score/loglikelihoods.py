"""Log-likelihoods from logits: each request's sum of log p(target), and whether greedy decoding writes it.

Legend: K positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.evals.score.prefixes import Node, Request
from pipeline.runtime.generation.sampling import NOT_FINITE
from pipeline.runtime.runner import Array
from pipeline.types import Failed

Answer = dict[str, tuple[float, bool]]
"""Head → (log-likelihood in nats, whether greedy decoding writes the continuation).

A variant's graph has the one head ''.
"""


class ScoringError(Failed):
    """Why a request could not be scored. The other requests are not affected."""


@dataclass(slots=True)
class LogLikelihoods:
    """The sums of all requests, which grow node by node.

    Attributes:
        requests: what is scored.
        heads: names of the outputs that are read.
        done: called with (index of the request, its answer or the error) once for each request.
    """

    requests: Sequence[Request]
    heads: Sequence[str]
    done: Callable[[int, Answer | ScoringError], None]
    _sums: Array = field(init=False)
    _greedy: Array = field(init=False)
    _left: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = len(self.requests), len(self.heads)
        self._sums, self._greedy = np.zeros(shape), np.ones(shape, bool)
        self._left = np.array([len(request.targets) for request in self.requests], np.int64)

    def read(self, node: Node, logits: Mapping[str, Array]) -> None:
        """Adds log p of every target that is predicted on a node.

        Args:
            node: what was run.
            logits: head → [K, V], one row for each of the node's wanted positions in ascending order.
        """
        for row, position in enumerate(sorted(node.wanted)):
            readers = node.wanted[position]
            targets = np.array([self.requests[number].targets[index] for number, index in readers])
            numbers = [number for number, _ in readers]
            for head, name in enumerate(self.heads):
                scores = logits[name][row].astype(np.float32, copy=False)
                if not np.isfinite(scores).all():  # one of -inf beside the target would leave the sum finite
                    self._sums[numbers, head] = np.nan
                    continue
                best = int(scores.argmax())
                # log p = score − max − log Σ exp(score − max)
                spread = float(np.log(np.exp(scores - scores[best]).sum(dtype=np.float64)))
                nats = scores[targets].astype(np.float64) - float(scores[best]) - spread
                np.add.at(self._sums, (numbers, head), nats)
                np.logical_and.at(self._greedy, (numbers, head), targets == best)
            for number in numbers:
                self._count(number)

    def _count(self, number: int) -> None:
        """Counts one target of a request as read; its last one completes the answer."""
        self._left[number] -= 1
        if self._left[number]:
            return
        if not np.isfinite(self._sums[number]).all():
            self.done(number, ScoringError(NOT_FINITE))
            return
        pairs = zip(self._sums[number].tolist(), self._greedy[number].tolist(), strict=True)
        self.done(number, dict(zip(self.heads, pairs, strict=True)))

    def fail(self, node: Node, error: ScoringError) -> None:
        """Gives up every request that needs this node."""
        for number in node.requests:
            if self._left[number] > 0:
                self._left[number] = -1
                self.done(number, error)
