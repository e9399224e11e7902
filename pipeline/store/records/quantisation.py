"""What is kept of quantised weights, and what `check` says of them."""

from __future__ import annotations

from typing import Literal

from pipeline.store.records.artefacts import QuantisationName
from pipeline.store.records.base import Count, Digest, Number, Record, Seconds
from pipeline.store.records.calibration import TextSource


class RoundedOn(Record):
    """On what text a method measured what it rounds by: N sequences of T tokens.

    Attributes:
        samples, length: N, T.
    """

    texts: TextSource
    samples: Count
    length: Count

    @property
    def words(self) -> str:
        """For people: 'a.txt (64 × 256 tokens)'."""
        origin = self.texts.origin
        where = origin if isinstance(origin, str) else ", ".join(name.rpartition("/")[2] for name in origin)
        return f"{where} ({self.samples} × {self.length} tokens)"


class KeptBlocks(Record):
    """What was not rounded again of a model that came as a GGUF in blocks.

    Attributes:
        file: name of the GGUF; of a split model of its first part.
        weights: so many keep their own blocks.
        of: so many in all.
    """

    file: str
    weights: Count
    of: Count

    @property
    def words(self) -> str:
        """For people."""
        if self.weights == self.of:
            return f"all {self.of} weights keep the blocks of {self.file}"
        return f"{self.weights} of {self.of} weights keep the blocks of {self.file}; the others are rounded"


class QuantisedRecord(Record):
    """graphs/<model>/quantised.<form>.json, beside the weights of that form.

    Attributes:
        version: of the code that wrote them.
        contents: digest of every byte of the checkpoint's weights that they were made of.
        quantisation: the form, as variants name it.
        head_bits: bits of the head's weights.
        method: how they were rounded.
        rounded_on: the text that it measured on; None of a method that reads none.
        kept: which weights were not rounded; None where all were.
        sha256, bytes: of the file.
    """

    what: Literal["quantised-weights"] = "quantised-weights"
    version: Count
    contents: Digest
    quantisation: QuantisationName
    head_bits: Count
    method: str = "rtn"
    rounded_on: RoundedOn | None = None
    kept: KeptBlocks | None = None
    sha256: Digest
    bytes: Count
    seconds: Seconds = 0.0

    @property
    def words(self) -> str:
        """For people: 'int4-gptq, rounded on a.txt (64 × 256 tokens)'."""
        on = f", rounded on {self.rounded_on.words}" if self.rounded_on else ", rounded to nearest"
        return f"{self.quantisation}{on}" + (f"; {self.kept.words}" if self.kept else "")


class LogitShift(Record):
    """How far one set of logits is from another of the same tokens.

    Attributes:
        positions: that were compared, over all feeds.
        divergence: mean over them of the Kullback-Leibler divergence from the first to the second, in nats.
        mean_abs, max_abs: of the differences.
        top1: share of positions with the same most likely token.
    """

    positions: Count
    divergence: float
    mean_abs: float
    max_abs: float
    top1: float


class OverPlain(Record):
    """What an artefact with quantised weights saves of the base with the checkpoint's own, timed beside it.

    Attributes:
        base: name of that base: 'base.fp32'.
        improvement: % of its median time that is saved.
        interval: its 95 % interval, %.
        ceiling: % that the bytes allow in decode; None of a prefill, whose FLOPs are of another kind.
    """

    base: str
    improvement: Number
    interval: tuple[Number, Number]
    ceiling: Number | None = None


class QuantisationShifts(Record):
    """What a check of quantised weights says beside its verdict.

    Attributes:
        weights: from PyTorch with the checkpoint's own weights to PyTorch with the dequantised ones.
        kernel: from the graph as it was compared, its products exact, to the graph as it is run elsewhere,
            its activations rounded to 8 bits in the products; None of an engine, or off the CPU.

    Either is None where some logits are not finite.
    """

    weights: LogitShift | None = None
    kernel: LogitShift | None = None
