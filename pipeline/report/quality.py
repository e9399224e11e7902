"""How good an artefact is, by one measure for each model: the average, or the benchmark that most have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.evals.score import results
from pipeline.evals.score.results import Average
from pipeline.report.rows import ArtefactResults, SourcedScore
from pipeline.report.sources import SourceFile


@dataclass(frozen=True, slots=True)
class SourcedAverage:
    """The mean over the papers' four benchmarks with the files behind it."""

    average: Average
    scores: list[SourcedScore]

    @property
    def percent(self) -> float:
        """The mean, %."""
        return 100 * self.average.value

    @property
    def stderr(self) -> float | None:
        """Its standard error, %."""
        return None if self.average.stderr is None else 100 * self.average.stderr

    @property
    def source(self) -> SourceFile:
        """The first of the files."""
        return self.scores[0].source

    def marks(self) -> tuple[str, ...]:
        """What a reader must know before believing it, in words."""
        return tuple(dict.fromkeys(note for one in self.scores for note in one.marks()))


def average(artefact: ArtefactResults) -> SourcedAverage | None:
    """The average of an artefact's scores with the benchmarks' own shots; None unless all four are there."""
    candidates = [one for one in artefact.scores if one.score.num_fewshot is None]
    mean = results.average(one.score for one in candidates)
    if mean is None:
        return None
    return SourcedAverage(
        mean, [one for one in candidates if any(one.score is score for score in mean.scores)]
    )


@dataclass(frozen=True, slots=True)
class Quality:
    """An artefact's value in % (a token loss: 100 times loss over log V, and lower is better)."""

    value: float
    stderr: float | None
    source: SourceFile
    notes: tuple[str, ...]


def yardstick(artefacts: list[ArtefactResults]) -> str | None:
    """What artefacts of one model are compared by: 'average', else the benchmark that most of them have."""
    averaged = [a for a in artefacts if average(a)]
    if any(a.variant == "base" for a in averaged) and len(averaged) > 1:
        return "average"
    counted = Counter(
        (not one.score.is_loss, one.score.benchmark)
        for a in artefacts
        for one in a.scores
        if one.score.num_fewshot is None
    )
    return max(counted, key=lambda key: (key[0], counted[key], key[1]), default=(False, None))[1]


def is_loss(artefacts: Iterable[ArtefactResults], by: str) -> bool:
    """Whether a benchmark is a token loss, of which less is better."""
    return any(one.score.is_loss for a in artefacts for one in a.scores if one.score.benchmark == by)


def loss_benchmark(artefacts: list[ArtefactResults]) -> str | None:
    """The token loss that most artefacts of one model have; None where there is none."""
    counted = Counter(one.score.benchmark for a in artefacts for one in a.scores if one.score.is_loss)
    return max(counted, key=lambda name: (counted[name], name), default=None)


def quality(artefact: ArtefactResults, by: str) -> Quality | None:
    """The artefact's value by the yardstick; None where it was not measured."""
    if by == "average":
        if (mean := average(artefact)) is None:
            return None
        return Quality(mean.percent, mean.stderr, mean.source, mean.marks())
    if (best := artefact.score(by)) is None:
        return None
    stderr = best.score.stderr
    return Quality(
        100 * best.score.value, None if stderr is None else 100 * stderr, best.source, best.marks()
    )


def length_of(artefacts: list[ArtefactResults], decode: bool = False) -> int | None:
    """The tokens that most were timed at, in a prefill or behind a decoded one; of equals the longest."""
    counted = Counter(
        one.record.length
        for a in artefacts
        for one in a.latencies
        if one.record.kind == "artefact" and one.conditions.decode == decode
    )
    return max(counted, key=lambda length: (counted[length], length), default=None)
