"""One recommendation a budget, with the evidence behind it and how sure it is.

A loss of quality is counted in percentage points of the average over ARC, HellaSwag, TruthfulQA and MMLU, as Tyukin et al. do;
where these four are not all there, of the benchmark that most variants have. Base and variant are compared only where they were
measured in the same way (precision, runner, device).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from pipeline.report.rows import Artefact, Findings, Source, Timed
from pipeline.report.tables import average

LOSSES = (1.0, 2.0, 5.0)
"""% of quality that may be lost."""
SAVINGS = (10.0, 20.0, 30.0)
"""% of time that must be saved."""
SURE = 1.645
"""One-sided 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good an artefact is, in % (a token loss: 100 times loss over log V, and lower is better)."""

    value: float
    stderr: float | None
    source: Source
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant beside its base: loss of quality in points (of a token loss: in % of the base's), and its standard error."""

    artefact: Artefact
    loss: float
    stderr: float | None
    quality: Quality
    time: Timed

    @property
    def speedup(self) -> float:
        return 1 / (1 - self.time.saved / 100) if self.time.saved < 100 else math.inf

    def chance_within(self, budget: float) -> float | None:
        """The probability that the true loss is within the budget, if its error is normal."""
        if not self.stderr:
            return None
        return 0.5 * (1 + math.erf((budget - self.loss) / (self.stderr * math.sqrt(2))))

    def text(self, yardstick: str) -> str:
        """'attn22-29.fp32: 1.16× faster (13.8 % [12.1, 15.2] saved …), loses 0.7 ±0.9 of average'."""
        t = self.time
        ceiling = "" if t.ceiling is None else f"; ceiling {t.ceiling:.1f} %"
        spread = "" if self.stderr is None else f" ±{self.stderr:.1f}"
        saved = f"{t.saved:.1f} % [{t.interval[0]:.1f}, {t.interval[1]:.1f}] of the time saved at {t.length} tokens{ceiling}"
        return f"{self.artefact.name}: {self.speedup:.2f}× faster ({saved}), loses {self.loss:.1f}{spread} {_unit(yardstick)}"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to take within one budget.

    Attributes:
        where: model, precision, runner and device that it holds for.
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
    evidence: tuple[tuple[str, Source], ...]


def yardstick(artefacts: list[Artefact]) -> str | None:
    """What these artefacts of one model are compared by: 'average', else the benchmark that most of them have."""
    with_average = [a for a in artefacts if average(a)]
    if any(a.variant == "base" for a in with_average) and len(with_average) > 1:
        return "average"
    counted = Counter(
        (not s.is_loss, s.benchmark) for a in artefacts for s in a.scores if s.num_fewshot is None
    )
    return max(counted, key=lambda key: (key[0], counted[key], key[1]), default=(False, None))[1]


def quality(artefact: Artefact, by: str) -> Quality | None:
    """The artefact's value on the yardstick."""
    if by == "average":
        if (mean := average(artefact)) is None:
            return None
        notes = tuple(dict.fromkeys(note for s in mean[2] for note in s.marks()))
        return Quality(mean[0], mean[1], mean[2][0].source, notes)
    if (score := artefact.score(by)) is None:
        return None
    return Quality(
        100 * score.value, None if score.stderr is None else 100 * score.stderr, score.source, score.marks()
    )


def length_of(artefacts: list[Artefact]) -> int | None:
    """The prefill length that most were timed at; of equals the longest."""
    counted = Counter(
        t.length for a in artefacts for t in a.times if t.contestant == "artefact" and not t.decode
    )
    return max(counted, key=lambda length: (counted[length], length), default=None)


def recommend(found: Findings) -> list[Recommendation]:
    """For every model, and every way in which base and variants were measured, one recommendation a budget."""
    made: list[Recommendation] = []
    for model in found.models():
        mine = [a for a in found.artefacts if a.model == model]
        by, length = yardstick(mine), length_of(mine)
        if by is None or length is None:
            continue
        groups: dict[str, list[Artefact]] = {}
        for artefact in mine:
            if time := artefact.time(length):
                groups.setdefault(f"{artefact.precision}, {artefact.runner}, {time.device}", []).append(
                    artefact
                )
        for where, group in groups.items():
            candidates = _candidates(group, by, length)
            if candidates:
                made += _of_group(model, where, candidates, by)
    return made


def _candidates(group: list[Artefact], by: str, length: int) -> list[Candidate]:
    """The group's variants beside its base; only what was checked and measured undisturbed."""
    base = next((q for a in group if a.variant == "base" and (q := quality(a, by))), None)
    if base is None:
        return []
    is_loss = any(s.is_loss for a in group for s in a.scores if s.benchmark == by)
    made = []
    for artefact in group:
        mine, time = quality(artefact, by), artefact.time(length)
        if artefact.variant == "base" or mine is None or time is None:
            continue
        if (
            (artefact.check or "passed") != "passed"
            or not time.checked
            or any("unchecked" in note for note in mine.notes)
        ):
            continue
        errors = None if base.stderr is None or mine.stderr is None else math.hypot(base.stderr, mine.stderr)
        loss = base.value - mine.value
        if is_loss:
            loss, errors = -100 * loss / base.value, None if errors is None else 100 * errors / base.value
        made.append(Candidate(artefact, loss, errors, mine, time))
    return made


def _of_group(model: str, where: str, candidates: list[Candidate], by: str) -> list[Recommendation]:
    made = []
    for budget in LOSSES:
        fits = [c for c in candidates if c.loss <= budget and c.time.saved > 0 and c.time.enough_clean]
        best = max(fits, key=lambda c: c.time.saved, default=None)
        nearest = min(candidates, key=lambda c: c.loss)
        title = f"at most {budget:g} % loss of {by}"
        made.append(_recommendation(model, where, title, best, nearest, candidates, by, budget))
    for saving in SAVINGS:
        fits = [c for c in candidates if c.time.saved >= saving and c.time.enough_clean]
        best = min(fits, key=lambda c: c.loss, default=None)
        nearest = max(candidates, key=lambda c: c.time.saved)
        made.append(
            _recommendation(
                model,
                where,
                f"at least {saving:g} % of the time saved",
                best,
                nearest,
                candidates,
                by,
                None,
                saving,
            )
        )
    return made


def _recommendation(
    model: str,
    where: str,
    title: str,
    best: Candidate | None,
    nearest: Candidate,
    all_: list[Candidate],
    by: str,
    budget: float | None,
    saving: float = 0.0,
) -> Recommendation:
    named = best or nearest
    disturbed = sum(not c.time.enough_clean for c in all_)
    left_out = f", {disturbed} of them not counted: too few undisturbed samples" if disturbed else ""
    words = (
        best.text(by)
        if best
        else f"none of {len(all_)} variants fits{left_out}; the nearest is {nearest.text(by)}"
    )
    evidence = (
        (f"{by} of {named.artefact.name}", named.quality.source),
        (f"latency of {named.artefact.name}", named.time.source),
    )
    return Recommendation(
        model, where, title, best, words, _doubts(named, len(all_) if best else 1, budget, saving), evidence
    )


def _doubts(c: Candidate, count: int, budget: float | None, saving: float) -> tuple[str, ...]:
    doubts = []
    if c.time.interval[0] < saving:
        less = f"less than {saving:g} % of the time is saved" if saving else "it is no faster than the base"
        doubts.append(
            f"the measurement does not exclude that {less}: its 95 % interval begins at {c.time.interval[0]:.1f} %"
        )
    if budget is not None:
        chance = c.chance_within(budget)
        doubts.append(
            "no standard error is known: how sure it is cannot be told"
            if chance is None
            else f"the true loss is within the budget with {chance:.0%} probability"
            + (
                ""
                if chance >= 0.95
                else f"; it is surely (95 %) within {max(0.0, c.loss + SURE * (c.stderr or 0)):.1f}"
            )
        )
    if c.stderr is not None:
        doubts.append(
            "the error counts base and variant as independent; they answered the same questions, so it is an upper bound"
        )
    if count > 1:
        doubts.append(
            f"it is the best of {count} on the same questions, so its loss is likelier under- than overstated"
        )
    return (*doubts, *c.quality.notes, *c.time.marks())


def _unit(by: str) -> str:
    return (
        "points of the average"
        if by == "average"
        else f"% of {by}"
        if by.endswith("loss")
        else f"points of {by}"
    )
