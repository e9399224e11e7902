"""What `check` and `bench` found; `scores` has the records of `score`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, TypeAdapter

from pipeline.store.records.artefacts import VariantRecord, Weights
from pipeline.store.records.base import (
    Count,
    Digest,
    FileState,
    Magnitude,
    Number,
    Positive,
    Record,
    Seconds,
)
from pipeline.store.records.gpu import GpuLoad
from pipeline.store.records.quantisation import OverPlain, QuantisationShifts
from pipeline.store.records.scores import ScoreRecord
from pipeline.types import Provider


class AgreementRecord(Record):
    """How near one output of one feed is to the reference's: an artefact's a beside the reference's b.

    What could not be measured is None: shapes that differ, values that are not finite.

    Attributes:
        max_abs: max |a − b|.
        max_rel: max |a − b| / max(|b|, rms(b)), with rms over the whole output: the output's usual size
            measures elements near zero.
        cosine: of the last axis, the least over all vectors (a logit row, a head's key).
        top1: share of positions with the same most likely token; None where the output holds no logits.
        top5: mean share of the five most likely tokens that are the same; None likewise.
        flips: positions whose most likely token differs although the reference's margin over its second
            exceeds what the limit allows both to move; None likewise.
        limit: the limit of max_rel that was applied.
        stable: False where rounding alone moves the reference so far that only PyTorch's own error can be
            the limit.
        why: the first reason for failing; '' where it passed.
    """

    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    top1: float | None = None
    top5: float | None = None
    flips: Count | None = None
    limit: float
    stable: bool
    passed: bool
    why: str = ""

    def __bool__(self) -> bool:
        return self.passed


class CheckLimits(Record):
    """How far an artefact of one precision may be from the fp32 reference.

    Attributes:
        max_rel: limit of `AgreementRecord.max_rel`, whatever the noise.
        cosine: least `AgreementRecord.cosine`.
        noise_factor, noise_floor: where PyTorch ran in the artefact's precision too, its own distance from
            the fp32 reference is the noise, and max_rel must stay under noise_factor · noise + noise_floor
            as well.
    """

    max_rel: float
    cosine: float
    noise_factor: float = 0.0
    noise_floor: float = 0.0


class LlamaCppRecord(Record):
    """PyTorch on a checkpoint that was made from a GGUF, beside llama.cpp on the GGUF.

    Attributes:
        file: the GGUF, relative to the checkpoint's source.json.
        distance: rms of the differences of log-probabilities over their spread; None where it is not finite.
        limit: of `distance`.
        tokens: of the prompts.
        kinds: types of the tensors in the file.
        version: of xllamacpp.
    """

    file: str
    distance: float | None
    limit: float
    passed: bool
    tokens: tuple[Count, ...]
    kinds: tuple[str, ...]
    version: str


class HealedProof(Record):
    """The tensors of a healed variant, compared with the checkpoint's and the adapter's own product.

    Attributes:
        adapter: SHA-256 of adapter_model.safetensors.
        tensors: how many it changes.
        worst: max|difference| / rms of the worst of them; the rounding to the checkpoint's type is in it.
    """

    adapter: Digest
    tensors: Count
    worst: float


class CheckRecord(VariantRecord):
    """evals/results/<model>/….check.json.

    Attributes:
        artefact: path of what was checked, relative to this file; `sha256` is its digest.
        failures: in words, each output that is beyond its limits.
        unstable: outputs that rounding alone moves as far.
        outputs: how many were compared.
        worst: statistic → its worst value over all logits.
        localized: where the residual stream first diverges.
        feeds, noise: feed → output → agreement with fp32 PyTorch, of the artefact and of fp16 PyTorch.
        tokens: where the tokens came from.
        crossed, missed: in words, which windows and rope switches the feeds go beyond, and which not.
        weights: identity of the checkpoint.
        files: all that was compared beside the artefact itself, by paths relative to this file: its weights,
            those of the reference and its config.json. None in results of 0.1 and 0.2.
        llamacpp: of the base of a model that came from a GGUF.
        llamacpp_missed: why llama.cpp was not asked about that GGUF, in words.
        healed: of a healed variant whose adapter is there: its tensors are the adapter's.
        shifts: of quantised weights: how far they move the logits.
        provider: 'cuda' where a graph ran on ONNX Runtime's CUDA provider; None on the CPU, and of engines.
        torch_device: what PyTorch computed on.
    """

    what: Literal["check"] = "check"
    artefact: str
    sha256: Digest
    passed: bool
    weights: Weights | None = None
    files: tuple[FileState, ...] | None = None
    failures: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    outputs: Count = 0
    worst: dict[str, float] | None = None
    localized: str | None = None
    limits: CheckLimits | None = None
    checkpoint: str | None = None
    references: tuple[str, ...] = ()
    tokens: str = ""
    crossed: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    llamacpp: LlamaCppRecord | None = None
    llamacpp_missed: str | None = None
    healed: HealedProof | None = None
    shifts: QuantisationShifts | None = None
    feeds: dict[str, dict[str, AgreementRecord]] = {}
    noise: dict[str, dict[str, AgreementRecord]] = {}
    versions: dict[str, str] = {}
    device: str = "unknown"
    provider: Literal["cuda"] | None = None
    torch_device: Provider = "cpu"
    seconds: Seconds = 0.0


class Latency(Record):
    """One contestant at one length.

    Attributes:
        artefact: its path; in a file relative to that file.
        name: the variant, with ' (torch)' or ' (optimum)' behind it where it is not the artefact itself.
        kind: 'artefact' itself, or 'torch' or 'optimum' on the same variant.
        length: tokens of a sequence.
        total: seconds for all sequences, as in the papers' tables: their number times the mean of the
            trusted samples.
        p50, p90, p99: milliseconds, of the trusted samples (clean ones where there are enough, else all).
        improvement: % of the base's median time that is saved, of PyTorch and optimum too.
        interval: its 95 % interval, %.
        over_plain: of quantised weights, the same against the base with the checkpoint's own, if timed.
        ceiling: % that the removed FLOPs (prefill) or bytes (decode) allow; None if config.json does not say.
        byte_ceiling: % that the removed bytes allow, of a prefill that bytes bind; None elsewhere, and in
            results of 0.3 and before.
        share: improvement / byte_ceiling, or / ceiling where there is none; None where nothing is removed,
            and for PyTorch and optimum.
        above_ceiling: the whole interval lies above both ceilings: a bug in the measurement, or time that is
            not spent on FLOPs (bytes).
        disturbed: samples found disturbed, repeats included.
        clean: sequences with an undisturbed sample.
        enough_clean: whether the results rest on clean samples alone.
        peak_mb: resident memory of a fresh process that runs this artefact alone.
        before_mb: the same before it loads the artefact.
        weight_mb, cache_bytes_per_token: of the variant.
        device_mb: MiB of the GPU: of an artefact, by which its used memory grew when a fresh process ran it
            (CUDA's own part included); of PyTorch, the most that its allocator gave this model. None on the
            CPU.
        attention: the kernels that attention ran on, with how often where there are several; None where the
            runtime does not tell.
        on_host: operator → nodes of a graph on CUDA that ONNX Runtime runs on the CPU; None of all others.
    """

    artefact: str
    name: str
    kind: Literal["artefact", "torch", "optimum"]
    length: Count
    total: Magnitude
    p50: Magnitude
    p90: Magnitude
    p99: Magnitude
    improvement: Number
    interval: tuple[Number, Number]
    over_plain: OverPlain | None = None
    ceiling: Number | None = None
    byte_ceiling: Number | None = None
    share: Number | None = None
    above_ceiling: bool
    disturbed: Count = 0
    clean: Count = 0
    enough_clean: bool
    peak_mb: Number | None = None
    before_mb: Number | None = None
    weight_mb: Number | None = None
    cache_bytes_per_token: Count | None = None
    device_mb: Number | None = None
    attention: str | None = None
    on_host: dict[str, Count] | None = None


class Conditions(Record):
    """How a bench was run.

    Attributes:
        measure: in words, what was timed.
        checked: every artefact had passed its check.
        foreign_load, allowance: whether other work on the machine is recognised, and how much of it a
            sample may have.
        how: contestant → how it is run, in words.
        agreement: length → contestant → largest difference of its logits from the artefact's.
        ceiling_of: what the ceiling counts, 'FLOPs' or 'bytes read'.
        tokens: where they came from.
        against: the variant that time is saved over; another than the base where the checkpoint holds none.
        provider: 'cuda' where a graph ran on ONNX Runtime's CUDA provider; None on the CPU, and of engines.
        timing: in words, what a sample's time is.
        warm_up: seconds of runs before the first sample of each length, at least; 0 for two runs each.
        gpu: length → the GPU around and during its measurement; none on the CPU, and where nothing tells.
    """

    measure: str = ""
    decode: bool
    sequences: Positive
    batch: Positive
    threads: Count
    device: str
    checked: bool
    foreign_load: str = ""
    allowance: str | None = None
    how: dict[str, str] = {}
    agreement: dict[str, dict[str, Number]] = {}
    ceiling_of: str = "FLOPs"
    versions: dict[str, str] = {}
    tokens: str = ""
    against: str = "base"
    provider: Literal["cuda"] | None = None
    timing: str = ""
    warm_up: Seconds = 0.0
    gpu: dict[str, GpuLoad] = {}


class BenchRecord(VariantRecord):
    """evals/results/<model>/….bench.json: the rows of one artefact, and of PyTorch and optimum beside it."""

    what: Literal["bench"] = "bench"
    artefact: str
    sha256: Digest
    weights: Weights | None = None
    conditions: Conditions
    rows: tuple[Latency, ...]


def _result_kind(record: Any) -> str | None:
    """'check', 'bench' or 'score'; None for what is none of them."""
    if not isinstance(record, dict):
        return None
    return "score" if "pipeline" in record else record.get("what")


RESULT: TypeAdapter[CheckRecord | BenchRecord | ScoreRecord] = TypeAdapter(
    Annotated[
        Annotated[CheckRecord, Tag("check")]
        | Annotated[BenchRecord, Tag("bench")]
        | Annotated[ScoreRecord, Tag("score")],
        Discriminator(
            _result_kind,
            custom_error_type="result",
            custom_error_message="no result of `check`, `bench` or `score`",
        ),
    ]
)
"""A result of any of the three commands."""
