"""What is left out for a time: chosen, cut, checked and measured in rounds, until the time is kept.

`cosine` solves for the least predicted damage. `evo` searches among all masks that save the time by what the
sublayers took in those rounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import prerequisites, timing
from pipeline.store.records import EvoRecord, SublayerTimes
from pipeline.types import Provider, SkipSet, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.calib.latency_budget import Approach, Round, TimeBudget
    from pipeline.calib.selectors import Choice, Question

RULES = ("cosine", "evo")
"""Those that choose for a time."""


@dataclass(frozen=True, slots=True)
class TimedChoice:
    """What `pipeline select` chose for a time.

    Attributes:
        kind: 'attn', 'mlp', 'block' or 'any'.
        length: tokens of the prefill that was timed.
        seconds: of a pass and of its sublayers.
        rounds: what was tried, the last one the choice.
        reached: whether it keeps the time.
        provider: of ONNX Runtime, that was timed.
        search: what the search of the last round came to, where there was one.
    """

    kind: str
    length: int
    seconds: SublayerTimes
    rounds: list[Round]
    reached: bool
    provider: Provider = "cpu"
    search: Choice | None = None

    @property
    def rule(self) -> str:
        """That the choice is of: cosine, too, where the search of `evo` came to none that keeps the time."""
        return "evo" if self.search else "cosine"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        last, search = self.rounds[-1], self.search
        return {
            "skip": last.skip.name,
            "attention": last.skip.attention,
            "mlp": last.skip.mlp,
            "kind": self.kind,
            "select": self.rule,
            "reached": self.reached,
            "speedup": last.measured,
            "length": self.length,
            "provider": self.provider,
            "seconds": self.seconds.plain(),
            "rounds": [{**asdict(one), "skip": one.skip.name} for one in self.rounds],
            "note": search.note if search else "",
            "runners_up": [(skip.name, value) for skip, value in search.runners_up] if search else [],
        }

    def text(self) -> str:
        """For a person."""
        times = self.seconds
        lines = [
            self.rounds[-1].skip.name,
            f"  a sublayer takes {times.attn * 1e3:.2f} ms (attn), {times.mlp * 1e3:.2f} ms (mlp) "
            f"of {times.whole * 1e3:.1f}",
        ]
        lines += [
            f"  {one.skip.name}: predicted {one.predicted:.3f}x, measured {one.measured:.3f}x; "
            f"Σ(1 - cosine) {one.damage:.3f}"
            for one in self.rounds
        ]
        if self.search:
            lines.append(f"  KL {self.search.chosen[0][1]:.4f}; {self.search.note}")
        if not self.reached:
            lines.append("  the time was not reached; this is the nearest that was measured last")
        return "\n".join(lines)


def choose(folder: Path, budget: TimeBudget, rule: str, question: Question) -> TimedChoice:
    """Chooses what to leave out for a time, and measures what was chosen.

    Args:
        folder: of the checkpoint.
        budget: the time.
        rule: one of RULES.
        question: how `evo` searches, and on what; its kind and count are not looked at.

    Raises:
        UserError: no such rule for a time, the whole model already keeps the time, or nothing reaches it.
    """
    from pipeline.calib import latency_budget
    from pipeline.graphs import export as stage
    from pipeline.models import checkpoint

    question.evo.belong_to(rule)
    if rule not in RULES:
        raise UserError(f"--select {rule:.40} takes a --count; for a time choose {' or '.join(RULES)}")
    budget.refuse_nonsense()
    start = _named_start(budget.kind, question) if rule == "evo" else None
    damage = latency_budget.candidates(budget.kind, question.statistics.similarity)
    base = stage.export_base(checkpoint.open_checkpoint(folder), "fp32")
    length, provider = budget.length, budget.devices.graphs
    times = timing.sublayer_times(base, length, provider)
    wanted = _speedup(budget, times)
    measure = _measure(base, budget)
    way = latency_budget.choose(damage, times, wanted, measure)
    search = None
    if rule == "evo" and way.reached:
        hunt = _Hunt(budget.kind, question, damage, start or way.rounds[-1].skip)
        hunted = latency_budget.approach(hunt.find, damage, way.times, wanted, measure)
        way, search = _joined(way, hunted), hunt.choice if hunted.reached else None
    return TimedChoice(budget.kind, length, times, way.rounds, way.reached, provider, search)


class _Hunt:
    """The searches of the rounds, each of which begins with what the one before came to.

    Args:
        kind: 'attn', 'mlp', 'block' or 'any'.
        question: how they search; the minutes are of all of them together.
        damage: of each candidate alone.
        first: what the first one begins with.
    """

    def __init__(self, kind: str, question: Question, damage: dict[SkipSet, float], first: SkipSet) -> None:
        self.kind, self.question, self.damage, self.best = kind, question, damage, first
        self.seconds = 0.0
        self.records: list[EvoRecord] = []

    def find(self, times: SublayerTimes, saved: float) -> SkipSet:
        """The best set that a search among those which save a time came to."""
        from pipeline.calib.evolution.space import Space

        question, evo = self.question, self.question.evo
        space = Space.by_time(self.kind, times, saved, question.num_layers)
        start = space.completed(self.best, self.damage)
        if evo.minutes is not None:
            evo = replace(evo, minutes=max(0.0, evo.minutes - self.seconds / 60))
        record = question.statistics.evolved(space, lambda: start, question.seed, evo)
        self.seconds += record.seconds
        self.records.append(record)
        self.best = SkipSet.parse(record.best[0])
        return self.best

    @property
    def choice(self) -> Choice:
        """What the last search came to."""
        from pipeline.calib.selectors import evo

        return evo.of_record(self.records[-1])


def _named_start(kind: str, question: Question) -> SkipSet | None:
    """The set that --start names; None for what `cosine` chooses.

    Raises:
        UserError: it names another rule or no set of this kind, or the seed is none.
    """
    from pipeline.calib import selectors
    from pipeline.calib.evolution import space
    from pipeline.calib.selectors import evo

    selectors.refuse_seed(question.seed)
    start = question.evo.start
    if start in (None, evo.FIRST):
        return None
    if start in selectors.names():
        raise UserError(f"--start {start} takes a --count; for a time name a skip set, or {evo.FIRST}")
    named = evo.named_start(question.evo, question)
    space.refuse_others(space.kinds_of(kind), named)
    return named


def _joined(cosine: Approach, evo: Approach) -> Approach:
    """One way, whose last round is the answer: cosine's, which kept the time, where evo's did not."""
    *before, kept = cosine.rounds
    rounds = [*before, kept, *evo.rounds] if evo.reached else [*before, *evo.rounds, kept]
    return (evo if evo.reached else cosine)._replace(rounds=rounds)


def _speedup(budget: TimeBudget, times: SublayerTimes) -> float:
    """Over the whole model, that keeps the time."""
    if budget.speedup is not None:
        return budget.speedup
    milliseconds = budget.latency_ms or 0.0
    wanted = times.whole / (milliseconds / 1e3)
    if wanted <= 1:
        raise UserError(
            f"{milliseconds:g} ms is what the whole model already keeps: "
            f"it takes {times.whole * 1e3:.0f} ms for {budget.length} tokens"
        )
    return wanted


def _measure(base: Path, budget: TimeBudget) -> Callable[[SkipSet], float]:
    """Gives the speed-up of a skip set: its graph is cut, checked, and timed beside the base."""
    from pipeline.graphs import variants as surgery

    def measure(skip: SkipSet) -> float:
        path = surgery.cut(base, skip)
        prerequisites.checked([path], False, budget.devices)
        return timing.speedup(path, budget.length, budget.devices.graphs)

    return measure
