"""One recommendation for each budget, with the evidence behind it and how sure it is.

A loss of quality is counted in percentage points of the average over ARC, HellaSwag, TruthfulQA and MMLU, as
Tyukin et al. do; where these four are not all there, of the benchmark that most variants have. Base and
variant are compared only where they were measured in the same way (precision, runner, device).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.report.quality import Quality, is_loss, length_of, quality, yardstick
from pipeline.report.rows import ArtefactResults, Collection, SourcedLatency
from pipeline.report.sources import SourceFile

LOSSES = (1.0, 2.0, 5.0)
"""% of quality that may be lost."""
SAVINGS = (10.0, 20.0, 30.0)
"""% of time that must be saved."""
SURE = 1.645
"""One-sided 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant beside its base.

    Attributes:
        loss, stderr: of quality, in points (of a token loss: in % of the base's).
    """

    artefact: ArtefactResults
    loss: float
    stderr: float | None
    quality: Quality
    latency: SourcedLatency

    @property
    def saved(self) -> float:
        """% of the base's time."""
        return self.latency.record.improvement

    @property
    def enough_clean(self) -> bool:
        """Whether its latency rests on undisturbed samples."""
        return self.latency.record.enough_clean

    @property
    def speedup(self) -> float:
        """The base's time over its own."""
        return 1 / (1 - self.saved / 100) if self.saved < 100 else math.inf

    def chance_within(self, budget: float) -> float | None:
        """The probability that the true loss is within the budget, if its error is normal."""
        if not self.stderr:
            return None
        return 0.5 * (1 + math.erf((budget - self.loss) / (self.stderr * math.sqrt(2))))

    def text(self, by: str) -> str:
        """'attn22-29.fp32: 1.16× faster (13.8 % [12.1, 15.2] of the time saved …), loses 0.7 ±0.9 …'."""
        row = self.latency.record
        ceiling = "" if row.ceiling is None else f"; ceiling {row.ceiling:.1f} %"
        spread = "" if self.stderr is None else f" ±{self.stderr:.1f}"
        interval = f"[{row.interval[0]:.1f}, {row.interval[1]:.1f}]"
        saved = f"{self.saved:.1f} % {interval} of the time saved at {row.length} tokens{ceiling}"
        loss = f"loses {self.loss:.1f}{spread} {_unit(by)}"
        return f"{self.artefact.name}: {self.speedup:.2f}× faster ({saved}), {loss}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be lost, or what must be saved; one of the two.

    Attributes:
        loss: % of quality.
        saving: % of time; 0 where the loss is bounded.
    """

    title: str
    loss: float | None = None
    saving: float = 0.0

    def best(self, candidates: list[Candidate]) -> Candidate | None:
        """The fastest within the loss, or the least loss with the saving; undisturbed measurements only."""
        clean = [c for c in candidates if c.enough_clean]
        if self.loss is not None:
            fitting = [c for c in clean if c.loss <= self.loss and c.saved > 0]
            return max(fitting, key=lambda c: c.saved, default=None)
        return min((c for c in clean if c.saved >= self.saving), key=lambda c: c.loss, default=None)

    def nearest(self, candidates: list[Candidate]) -> Candidate:
        """What comes nearest where nothing fits."""
        if self.loss is not None:
            return min(candidates, key=lambda c: c.loss)
        return max(candidates, key=lambda c: c.saved)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to take within one budget.

    Attributes:
        where: precision, runner and device that it holds for.
        choice: None where nothing fits; `words` then says what came nearest.
        doubts: what makes it uncertain, in words.
        evidence: (what, the file) pairs.
    """

    model: str
    where: str
    budget: str
    choice: Candidate | None
    words: str
    doubts: tuple[str, ...]
    evidence: tuple[tuple[str, SourceFile], ...]


def recommend(collection: Collection) -> list[Recommendation]:
    """One recommendation a budget for every model, precision, runner and device with a base."""
    recommendations: list[Recommendation] = []
    for model in collection.models():
        artefacts = collection.artefacts_of(model)
        by, length = yardstick(artefacts), length_of(artefacts)
        if by is None or length is None:
            continue
        groups: dict[str, list[ArtefactResults]] = {}
        for artefact in artefacts:
            if latency := artefact.latency(length):
                where = f"{artefact.precision}, {artefact.runner}, {latency.device}"
                groups.setdefault(where, []).append(artefact)
        for where, group in groups.items():
            if candidates := _candidates(group, by, length):
                recommendations += [
                    _recommendation(model, where, budget, candidates, by) for budget in _budgets(by)
                ]
    return recommendations


def _budgets(by: str) -> list[Budget]:
    losses = [Budget(f"at most {loss:g} % loss of {by}", loss=loss) for loss in LOSSES]
    return losses + [Budget(f"at least {saving:g} % of the time saved", saving=saving) for saving in SAVINGS]


def _candidates(group: list[ArtefactResults], by: str, length: int) -> list[Candidate]:
    """The group's variants beside its base; only what was checked."""
    base = next((q for a in group if a.variant == "base" and (q := quality(a, by))), None)
    if base is None:
        return []
    of_loss = is_loss(group, by)
    candidates = []
    for artefact in group:
        own, latency = quality(artefact, by), artefact.latency(length)
        if artefact.variant == "base" or own is None or latency is None:
            continue
        if not _is_checked(artefact, own, latency):
            continue
        errors = None if base.stderr is None or own.stderr is None else math.hypot(base.stderr, own.stderr)
        loss = base.value - own.value
        if of_loss:
            loss, errors = -100 * loss / base.value, None if errors is None else 100 * errors / base.value
        candidates.append(Candidate(artefact, loss, errors, own, latency))
    return candidates


def _is_checked(artefact: ArtefactResults, own: Quality, latency: SourcedLatency) -> bool:
    unchecked = any("unchecked" in note for note in own.notes)
    return artefact.check in (None, "passed") and latency.conditions.checked and not unchecked


def _recommendation(
    model: str, where: str, budget: Budget, candidates: list[Candidate], by: str
) -> Recommendation:
    best = budget.best(candidates)
    shown = best or budget.nearest(candidates)
    disturbed = sum(not c.enough_clean for c in candidates)
    excluded = f", {disturbed} of them not counted: too few undisturbed samples" if disturbed else ""
    words = shown.text(by)
    if best is None:
        words = f"none of {len(candidates)} variants fits{excluded}; the nearest is {words}"
    evidence = (
        (f"{by} of {shown.artefact.name}", shown.quality.source),
        (f"latency of {shown.artefact.name}", shown.latency.source),
    )
    doubts = _doubts(shown, len(candidates) if best else 1, budget)
    if shown.artefact.compensation and is_loss([shown.artefact], by):
        doubts = (*doubts, "a compensation wins back loss before it wins back answers: score a benchmark too")
    return Recommendation(model, where, budget.title, best, words, doubts, evidence)


def _doubts(candidate: Candidate, count: int, budget: Budget) -> tuple[str, ...]:
    """What makes the choice of one of `count` candidates uncertain."""
    doubts = []
    low = candidate.latency.record.interval[0]
    if low < budget.saving:
        less = f"less than {budget.saving:g} % of the time is saved"
        doubts.append(
            "the measurement does not exclude that "
            f"{less if budget.saving else 'it is no faster than the base'}: "
            f"its 95 % interval begins at {low:.1f} %"
        )
    if budget.loss is not None:
        doubts.append(_chance(candidate, budget.loss))
    if candidate.stderr is not None:
        doubts.append(
            "the error counts base and variant as independent; they answered the same questions, "
            "so it is an upper bound"
        )
    if count > 1:
        doubts.append(
            f"it is the best of {count} on the same questions, so its loss is likelier under- than overstated"
        )
    return (*doubts, *candidate.quality.notes, *candidate.latency.marks())


def _chance(candidate: Candidate, loss: float) -> str:
    chance = candidate.chance_within(loss)
    if chance is None:
        return "no standard error is known: how sure it is cannot be told"
    bound = max(0.0, candidate.loss + SURE * (candidate.stderr or 0))
    end = "" if chance >= 0.95 else f"; it is surely (95 %) within {bound:.1f}"
    return f"the true loss is within the budget with {chance:.0%} probability{end}"


def _unit(by: str) -> str:
    if by == "average":
        return "points of the average"
    return f"% of {by}" if by.endswith("loss") else f"points of {by}"
