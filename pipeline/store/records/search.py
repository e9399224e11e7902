"""What searches over sublayers write."""

from __future__ import annotations

from typing import Literal, Self

from pipeline.store.records.artefacts import Weights
from pipeline.store.records.base import Count, Digest, Number, Positive, Record, Seconds, VariantName
from pipeline.store.records.calibration import OfModelOnText, TextBasedRequest, TextSource
from pipeline.types import Provider


class Removal(Record):
    """One removal of a greedy search.

    Attributes:
        removed: the candidate's name, as a skip set.
        loss: nats a token without it and all that went before, over all N sequences.
        others: (name, loss, sequences measured) of the candidates that stay, the nearest first.
    """

    removed: str
    loss: float
    others: tuple[tuple[str, float, Count], ...]


class GreedyRequest(TextBasedRequest):
    """What a greedy search is to measure.

    Attributes:
        weights: identity of the checkpoint.
        contents: digest of all its bytes; None in files of 0.1 and 0.2.
        samples, length: N sequences of T tokens.
        every: the loss is read at every so many positions.
        doubt: standard errors behind the best at which a candidate is dropped.
        maps_of: digest of the token ids that linear maps in the place of what is gone are fitted and judged
            on; None where nothing stands there.
        device: that the model runs on.
    """

    what: Literal["greedy"] = "greedy"
    model: str
    weights: Weights | None
    contents: Digest | None = None
    kind: str
    samples: Count
    length: Count
    every: Count
    doubt: float
    maps_of: Digest | None = None
    texts: TextSource
    device: Provider = "cpu"


class GreedyRecord(GreedyRequest):
    """calib/<model>/greedy[-linear]-<kind>[.cuda].json: an order of removals; longer searches go on.

    Attributes:
        base_loss: nats a token of the whole model on the same positions.
        steps: the removals, in order.
        flops, plain_flops: of matrix products with weights, as computed, and with a whole pass for each
            candidate.
    """

    base_loss: float
    steps: tuple[Removal, ...] = ()
    flops: float = 0.0
    plain_flops: float = 0.0


EvoStop = Literal["minutes", "generations", "patience", "exhausted"]
"""Why an evolutionary search ended."""


class EvoGeneration(Record):
    """One generation of an evolutionary search.

    Attributes:
        best: the set that stays, by name.
        value: its KL to the whole model on all N sequences, nats a position.
        measured: (name, KL) of the offspring that were measured on all N sequences, best first.
    """

    best: VariantName
    value: Number
    measured: tuple[tuple[VariantName, Number], ...]


class EvoRequest(OfModelOnText):
    """What an evolutionary search is over, and what it measures.

    Attributes:
        kinds: of sublayers that go: ('mlp',), ('block',), ('attn', 'mlp').
        front: how many of each kind may go together; neighbours are a step apart.
        start: the set that it begins with, by name.
        seed: of all that is drawn.
        samples, length: N sequences of T tokens.
        every: one of so many positions is read.
        first: of the N sequences, on which offspring are first compared.
        offspring, finalists: of a generation; so many of the first comparison's best are measured on all N.
        maps_of: digest of the token ids that linear maps in the place of what is gone are fitted and judged
            on; None where nothing stands there.
    """

    what: Literal["evo"] = "evo"
    kinds: tuple[str, ...]
    front: tuple[tuple[Count, ...], ...]
    start: VariantName
    seed: Count
    samples: Positive
    length: Positive
    every: Positive
    first: Positive
    offspring: Positive
    finalists: Positive
    maps_of: Digest | None = None


class EvoRecord(EvoRequest):
    """calib/<model>/evo-<kinds>-<digest of the request>[.cuda].json; a search that was stopped goes on.

    Attributes:
        start_value: KL of the start on all N sequences.
        generations: in order.
        seconds: of search, of all runs together.
        stopped: why it ended: 'minutes' are over, 'generations' are done, 'patience' (none of the last ones
            was better), or 'exhausted' (no mask near the best is left that was not
            measured). None: it was killed.
    """

    start_value: Number
    generations: tuple[EvoGeneration, ...] = ()
    seconds: Seconds = 0.0
    stopped: EvoStop | None = None

    @property
    def best(self) -> tuple[str, float]:
        """(name, KL) of the set that the search came to."""
        last = self.generations[-1:]
        return (last[0].best, last[0].value) if last else (self.start, self.start_value)

    @property
    def measured(self) -> dict[str, float]:
        """Name → KL of each set that was measured on all N sequences, best first; of equal ones the first."""
        pairs = [(self.start, self.start_value), *(pair for one in self.generations for pair in one.measured)]
        return dict(sorted(pairs, key=lambda pair: pair[1]))

    @property
    def idle(self) -> int:
        """Generations since the best was last replaced."""
        names = [self.start, *(one.best for one in self.generations)]
        return next((k for k, name in enumerate(reversed(names)) if name != names[-1]), len(names)) - 1

    def until(self, generations: int) -> Self:
        """The search as it was after so many generations, where there were more."""
        if len(self.generations) <= generations:
            return self
        return self.replaced(generations=self.generations[:generations], stopped="generations")
