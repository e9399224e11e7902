"""What the report is made of: records with their source files, gathered by artefact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.calib.similarity import Similarity
from pipeline.report.sources import Sourced, SourceFile
from pipeline.store.records import Conditions, Latency, LedgerEntry, Score, ScoreRecord, SimilarityRecord
from pipeline.types import SkipSet

UNCHECKED = "unchecked: nothing says that the artefact computes the right thing"
KINDS = ("base", "attn", "mlp", "block", "mixed")
"""What a variant leaves out; `mixed` where attention and MLPs go from different layers."""


@dataclass(frozen=True, slots=True)
class SourcedScore(Sourced[ScoreRecord]):
    """One benchmark's score with its source file."""

    @property
    def score(self) -> Score:
        """The score itself."""
        return self.record.pipeline

    @property
    def device(self) -> str:
        """Where it was measured."""
        return self.record.config.device

    @property
    def versions(self) -> str:
        """'lm_eval 0.4.13, arc 1.0': of lm-eval and of its tasks."""
        return _joined({"lm_eval": self.record.lm_eval_version or None, **self.record.versions})

    def marks(self) -> tuple[str, ...]:
        """What a reader must know before believing it, in words."""
        score = self.score
        notes = [] if score.is_whole else [f"{score.n} documents, not the whole published set"]
        notes += [] if score.checked else [UNCHECKED]
        notes += [f"few-shot examples from {score.shots}"] if score.shots else []
        return tuple(notes)


@dataclass(frozen=True, slots=True)
class SourcedLatency(Sourced[Latency]):
    """The latency at one length with its source file and the conditions of its run."""

    conditions: Conditions

    @property
    def workload(self) -> str:
        """'prefill 50', 'decode 100'."""
        return f"{'decode' if self.conditions.decode else 'prefill'} {self.record.length}"

    @property
    def device(self) -> str:
        """Where it was measured, and on how many threads."""
        return f"{self.conditions.device}, {self.conditions.threads} threads"

    @property
    def versions(self) -> str:
        """'onnxruntime 1.27.0, …'."""
        return _joined(self.conditions.versions)

    def marks(self) -> tuple[str, ...]:
        """What a reader must know before believing it, in words."""
        notes = [] if self.record.enough_clean else ["too few undisturbed samples: do not quote it"]
        if self.record.above_ceiling:
            notes.append(
                "above its ceiling: a bug in the measurement, or time that is no counted work",
            )
        if (against := self.conditions.against) != "base":
            notes.append(f"saved over {against}, for the checkpoint's files hold no base")
        return (*notes, *([] if self.conditions.checked else [UNCHECKED]))


def _joined(versions: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)


@dataclass(slots=True)
class ArtefactResults:
    """All results of one artefact, which is one SHA-256 of one model.

    Attributes:
        num_layers: of the model; None where no file says it.
        precision: 'fp16'; with quantised weights 'int4-fp32'.
        runner: 'graph' on the CPU, 'onnxruntime-cuda-fp32' on CUDA, or the engine's file name.
        check: 'passed', 'failed: …', or None.
        unproven: why nothing of it can have been measured here, where that is known.
        selectors: the rules that chose its skip set.
    """

    model: str
    variant: str
    skip: SkipSet
    precision: str
    adapter: str | None
    compensation: str | None
    runner: str
    sha256: str
    num_layers: int | None
    check: str | None = None
    check_source: SourceFile | None = None
    unproven: str | None = None
    scores: list[SourcedScore] = field(default_factory=list)
    latencies: list[SourcedLatency] = field(default_factory=list)
    selectors: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return kind_of(self.skip)

    @property
    def fraction(self) -> float | None:
        """Of the sublayers of its kind that are left out, 0 … 1; of all sublayers for a mixed one."""
        if self.num_layers is None:
            return None
        attention, mlp = len(self.skip.attention), len(self.skip.mlp)
        if self.kind == "mixed":
            return (attention + mlp) / (2 * self.num_layers)
        return max(attention, mlp) / self.num_layers

    @property
    def quantisation(self) -> str:
        """Of its weights: '', 'int4', 'int8-b32'."""
        return self.precision.rpartition("-")[0]

    @property
    def mended(self) -> str:
        """What was done beside the cut: '', 'healed', 'linear', or 'int4, linear, healed'."""
        words = (self.quantisation, self.compensation, "healed" if self.adapter else None)
        return ", ".join(word for word in words if word)

    @property
    def name(self) -> str:
        """'attn22-29.fp32', or 'attn22-29/tensorrt-sm80-fp16' for an engine."""
        end = f".{self.precision}" if self.runner == "graph" else f"/{self.runner}"
        return self.variant + end

    @property
    def results(self) -> list[SourcedScore | SourcedLatency]:
        """All that was measured of it."""
        return [*self.scores, *self.latencies]

    def score(self, benchmark: str) -> SourcedScore | None:
        """The fullest score of a benchmark with its own shots; of equals v1's, the papers' leaderboard's."""
        candidates = [
            one for one in self.scores if one.score.benchmark == benchmark and one.score.num_fewshot is None
        ]
        return max(candidates, key=lambda one: (*trust(one), one.score.protocol == "v1"), default=None)

    def latency(self, length: int, decode: bool = False) -> SourcedLatency | None:
        """The latency at one length and batch 1, of the artefact itself."""
        candidates = [
            one
            for one in self.latencies
            if (one.record.kind, one.record.length) == ("artefact", length)
            and (one.conditions.decode, one.conditions.batch) == (decode, 1)
        ]
        return max(candidates, key=_latency_trust, default=None)


def trust(one: SourcedScore) -> tuple[bool, bool, int]:
    """A score's order of trust: checked first, then the whole set, then more documents."""
    return one.score.checked, one.score.is_whole, one.score.n


def _latency_trust(one: SourcedLatency) -> tuple[bool, bool, int]:
    return one.conditions.checked, one.record.enough_clean, one.conditions.sequences


@dataclass(frozen=True, slots=True)
class SourcedStatistics(Sourced[SimilarityRecord]):
    """The similarity statistics of one model.

    Attributes:
        similarity: with its arrays; None where they cannot be used, and then `gap` says why.
    """

    model: str
    similarity: Similarity | None
    gap: str | None


class UnusableFile(NamedTuple):
    """A file that could not be read, by its path in the project."""

    name: str
    reason: str


@dataclass(slots=True)
class Collection:
    """All that the report is made of."""

    artefacts: list[ArtefactResults] = field(default_factory=list)
    jobs: list[Sourced[LedgerEntry]] = field(default_factory=list)
    statistics: list[SourcedStatistics] = field(default_factory=list)
    sources: list[SourceFile] = field(default_factory=list)
    problems: list[UnusableFile] = field(default_factory=list)

    def models(self) -> list[str]:
        """Names of the models, each once."""
        names = [a.model for a in self.artefacts] + [s.model for s in self.statistics]
        return list(dict.fromkeys(names + [job.record.model for job in self.jobs]))

    def artefacts_of(self, model: str) -> list[ArtefactResults]:
        """The artefacts of one model."""
        return [a for a in self.artefacts if a.model == model]


def kind_of(skip: SkipSet) -> str:
    """One of KINDS: what a skip set leaves out."""
    if not skip:
        return "base"
    if skip.attention == skip.mlp:
        return "block"
    if skip.attention and skip.mlp:
        return "mixed"
    return "attn" if skip.attention else "mlp"
