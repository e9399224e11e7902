"""What is measured of skip sets that stand for a choice, and the whole comparison."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.store.records.base import Count, Digest, Layer, Magnitude, Number, Positive, Record, VariantName
from pipeline.store.records.calibration import OfModelOnText, TextSource
from pipeline.store.records.scores import Score
from pipeline.types import Provider


class HeldOutRequest(OfModelOnText):
    """Of what model and text variants are to be measured.

    Attributes:
        samples, length: N sequences of T tokens.
        every: losses and divergences are read at every so many positions.
    """

    what: Literal["held-out"] = "held-out"
    samples: Positive
    length: Positive
    every: Positive


class HeldOutLosses(Record):
    """One variant on N sequences.

    Attributes:
        overlay: SHA-256 of what stands in for skipped sublayers; None where nothing does.
        losses: nats a token of each sequence.
        divergences: KL(whole model ‖ variant) of each, in nats a token.
    """

    overlay: Digest | None
    losses: tuple[Number, ...]
    divergences: tuple[Number, ...]


class HeldOutRecord(HeldOutRequest):
    """calib/<model>/held-out-<digest of the tokens>[.cuda].json.

    Attributes:
        variants: name → what was measured of it.
    """

    variants: dict[str, HeldOutLosses] = {}


class FinalistRow(Record):
    """A finalist, or the base.

    Attributes:
        variant: its name, with its compensation.
        attention, mlp: layers that are left out.
        artefact: path of the graph that was measured.
        is_choice: whether it is the rule's own choice.
        nominee_loss: nats a token with nothing in the place of what is skipped, by which it became a
            finalist; None of the base, and where the rule itself ranked it.
        milliseconds: median of a prefill.
        speedup: over the base.
        enough_clean: whether the time rests on undisturbed samples alone.
        loss, loss_stderr: nats a token on held-out text, and its standard error over sequences.
        divergence, divergence_stderr: KL(whole model ‖ this) there, in nats a token.
        scores: one a benchmark.
        average: mean of those that are no losses, as a fraction; None without any.
        on_divergence_front: nothing else is as fast and as near to the whole model, and better in one.
        on_score_front: nothing else is as fast and as good on average, and better in one.
    """

    variant: VariantName
    attention: tuple[Layer, ...]
    mlp: tuple[Layer, ...]
    artefact: str
    is_choice: bool = False
    nominee_loss: Number | None = None
    milliseconds: Magnitude
    speedup: Magnitude
    enough_clean: bool
    loss: Number
    loss_stderr: Magnitude | None
    divergence: Number
    divergence_stderr: Magnitude | None
    scores: tuple[Score, ...] = ()
    average: Number | None = None
    on_divergence_front: bool = False
    on_score_front: bool = False


class FinalistsRecord(Record):
    """What `pipeline select --finalists` prints.

    Attributes:
        select: the rule.
        form: of what stands in for skipped sublayers; 'none' for nothing.
        length: tokens of the prefill that was timed.
        device: that graphs ran on; torch_device: that losses were measured on.
        texts: that losses and divergences are of; behind all that was read before.
        samples, sequence_length: N sequences of T tokens of it.
        nominees: skip sets among which the finalists were found, the finalists included.
        rows: the base, then the finalists.
    """

    what: Literal["finalists"] = "finalists"
    model: str
    select: str
    form: str
    length: Positive
    device: Provider = "cpu"
    torch_device: Provider = "cpu"
    texts: TextSource
    samples: Positive
    sequence_length: Positive
    nominees: Count
    rows: tuple[FinalistRow, ...] = Field(min_length=2)
