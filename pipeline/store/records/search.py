"""What a greedy search writes."""

from __future__ import annotations

from typing import Literal

from pipeline.store.records.artefacts import Weights
from pipeline.store.records.base import Count, Digest, Record
from pipeline.store.records.calibration import TextBasedRequest, TextSource
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
