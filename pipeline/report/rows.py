"""What the report is made of: numbers with where they came from. A number that is not there is a gap with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.evals.score.results import LOWER_IS_BETTER, text_of
from pipeline.types import SkipSet

UNCHECKED = "unchecked: nothing says that the artefact computes the right thing"
KINDS = ("base", "attn", "mlp", "block", "mixed")
"""What a variant leaves out; `mixed` where attention and MLPs go from different layers."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a number was read from.

    Attributes:
        path: as it was found.
        copy: of the same bytes inside the report's folder, relative to it: what links point at.
        digest: SHA-256 of the bytes.
    """

    path: str
    copy: str
    digest: str


@dataclass(frozen=True, slots=True)
class Scored:
    """One benchmark's value; `value` and `stderr` are fractions (a loss: over log V), n counts documents."""

    benchmark: str
    title: str
    metric: str
    value: float
    stderr: float | None
    n: int
    limit: int | None
    num_fewshot: int | None
    protocol: str
    complete: bool | None
    shots: str | None
    checked: bool
    device: str
    versions: str
    source: Source

    @property
    def is_loss(self) -> bool:
        return self.metric in LOWER_IS_BETTER

    @property
    def text(self) -> str:
        return text_of(self.value, self.stderr, self.metric)

    @property
    def whole(self) -> bool:
        """Whether it rests on the whole published set, as far as is known."""
        return self.limit is None and self.complete is not False

    def marks(self) -> tuple[str, ...]:
        """What a reader must know before believing it, in words."""
        found = [] if self.whole else [f"{self.n} documents, not the whole published set"]
        found += [] if self.checked else [UNCHECKED]
        found += [f"few-shot examples from {self.shots}"] if self.shots else []
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Timed:
    """One length's latency: milliseconds a pass, seconds in total for `sequences`, % of base's time saved and its 95 % interval.

    Attributes:
        contestant: 'artefact', or 'torch' or 'optimum' on the same variant.
        ceiling: % that the removed work allows.
    """

    contestant: str
    length: int
    decode: bool
    total: float
    sequences: int
    batch: int
    p50: float
    p90: float
    p99: float
    saved: float
    interval: tuple[float, float]
    ceiling: float | None
    above_ceiling: bool
    enough_clean: bool
    checked: bool
    peak_mb: float | None
    weight_mb: float | None
    cache_bytes: float | None
    device: str
    versions: str
    source: Source

    @property
    def what(self) -> str:
        """'prefill 50', 'decode 100'."""
        return f"{'decode' if self.decode else 'prefill'} {self.length}"

    def marks(self) -> tuple[str, ...]:
        """What a reader must know before believing it, in words."""
        found = ["too few undisturbed samples: do not quote it"] if not self.enough_clean else []
        found += (
            ["above its ceiling: a bug in the measurement, or time that is no counted work"]
            if self.above_ceiling
            else []
        )
        return (*found, *([] if self.checked else [UNCHECKED]))


@dataclass(slots=True)
class Artefact:
    """Everything that result files say of one artefact: one SHA-256 of one model.

    Attributes:
        layers: of the model; None where nothing here tells.
        runner: 'graph', or the engine's file name.
        check: 'passed', 'failed: …', or None.
        unproven: why nothing of it can have been measured here, where that is known.
    """

    model: str
    variant: str
    skip: SkipSet
    precision: str
    adapter: str | None
    runner: str
    digest: str
    layers: int | None
    check: str | None = None
    checked_in: Source | None = None
    unproven: str | None = None
    scores: list[Scored] = field(default_factory=list)
    times: list[Timed] = field(default_factory=list)
    selectors: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str:
        return kind_of(self.skip)

    @property
    def fraction(self) -> float | None:
        """Of the sublayers of its kind that are left out, 0 … 1; of all sublayers for a mixed one."""
        if self.layers is None:
            return None
        attention, mlp = len(self.skip.attention), len(self.skip.mlp)
        return (
            (attention + mlp) / (2 * self.layers)
            if self.kind == "mixed"
            else max(attention, mlp) / self.layers
        )

    @property
    def name(self) -> str:
        """'attn22-29.fp32', or 'attn22-29/tensorrt-sm80-fp16' for an engine."""
        return (
            f"{self.variant}.{self.precision}" if self.runner == "graph" else f"{self.variant}/{self.runner}"
        )

    @property
    def results(self) -> list[Scored | Timed]:
        return [*self.scores, *self.times]

    def score(self, benchmark: str) -> Scored | None:
        """The fullest score of a benchmark with its own shots; of equals v1's, which the papers' leaderboard used."""
        mine = [s for s in self.scores if s.benchmark == benchmark and s.num_fewshot is None]
        return max(mine, key=lambda s: (s.checked, s.whole, s.n, s.protocol == "v1"), default=None)

    def time(self, length: int, decode: bool = False) -> Timed | None:
        """The latency at one length and batch 1, of the artefact itself."""
        mine = [
            t
            for t in self.times
            if (t.contestant, t.length, t.decode, t.batch) == ("artefact", length, decode, 1)
        ]
        return max(mine, key=lambda t: (t.checked, t.enough_clean, t.sequences), default=None)


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a sweep's ledger: one stage on one variant."""

    stage: str
    model: str
    variant: str | None
    kind: str | None
    frac: float | None
    select: str | None
    precision: str | None
    task: str | None
    state: str
    error: str | None
    source: Source


@dataclass(slots=True)
class Statistics:
    """Similarity of one model: lists as in similarity.json, and the angular distances [M, M] where their arrays are there."""

    model: str
    record: dict[str, Any]
    distances: Any
    gap: str | None
    source: Source


@dataclass(slots=True)
class Findings:
    """All that was found."""

    artefacts: list[Artefact] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def models(self) -> list[str]:
        named = (
            [a.model for a in self.artefacts]
            + [s.model for s in self.statistics]
            + [j.model for j in self.jobs]
        )
        return list(dict.fromkeys(named))


def kind_of(skip: SkipSet) -> str:
    if not skip:
        return "base"
    if skip.attention == skip.mlp:
        return "block"
    return "mixed" if skip.attention and skip.mlp else "attn" if skip.attention else "mlp"
