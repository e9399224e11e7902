"""The skip set of least predicted damage that meets a time: an integer programme over the sublayers.

    minimise Σ cᵢ·xᵢ   such that   Σ tᵢ·xᵢ ≥ s,   x ∈ {0, 1}

cᵢ is the predicted damage of leaving sublayer i out, 1 − cosine of the stream before and after it; tᵢ the
seconds that it takes; s the seconds to save. scipy solves it (HiGHS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from pipeline.calib.similarity import Similarity
from pipeline.store.records import SublayerTimes
from pipeline.types import BASE, CPU, Devices, SkipSet, UserError

Find = Callable[[SublayerTimes, float], SkipSet]
"""(times of sublayers, seconds to save) → a skip set that saves them."""
ROUNDS = 5
"""Finalists that are measured at most."""


class OutOfReach(UserError):
    """A time that no skip set is predicted to keep."""


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """What is to be kept, and of what.

    Attributes:
        kind: 'attn', 'mlp', 'block' or 'any', of what may go.
        speedup: over the whole model; or else
        latency_ms: milliseconds of a prefill.
        length: tokens of it.
        devices: that are timed, and that the finalist's check runs on.
    """

    kind: str
    speedup: float | None
    latency_ms: float | None
    length: int
    devices: Devices = CPU

    def refuse_nonsense(self) -> None:
        """Refuses what nothing can keep, before anything is measured.

        Raises:
            UserError: the speed-up is not above 1, or the milliseconds or tokens are not above 0.
        """
        if self.speedup is not None:
            refuse_speedup(self.speedup)
        if self.latency_ms is not None and not 0 < self.latency_ms < math.inf:
            raise UserError(f"--latency-ms {self.latency_ms:g} is not a number above 0")
        if self.length < 1:
            raise UserError(f"--length {self.length} is not at least 1")


@dataclass(frozen=True, slots=True)
class Round:
    """One finalist.

    Attributes:
        skip: what it leaves out.
        damage: Σ (1 − cosine) of that.
        predicted, measured: speed-ups over the whole model.
    """

    skip: SkipSet
    damage: float
    predicted: float
    measured: float


class Approach(NamedTuple):
    """The way to a speed-up.

    Attributes:
        rounds: what was tried, the last one the answer.
        reached: whether it reached what was asked.
        times: those that the last one was predicted with.
    """

    rounds: list[Round]
    reached: bool
    times: SublayerTimes


def refuse_speedup(speedup: float) -> None:
    """Refuses what is no speed-up.

    Raises:
        UserError: it is not above 1, or not finite.
    """
    if not 1 < speedup < math.inf:
        raise UserError(f"a speed-up of {speedup:g} is none; ask for more than 1")


def candidates(kind: str, similarity: Similarity) -> dict[SkipSet, float]:
    """What may go → its predicted damage.

    Args:
        kind: 'attn', 'mlp', 'block' for whole layers, or 'any' for sublayers of both kinds.
        similarity: statistics of the model.

    Raises:
        UserError: no such kind.
    """
    kinds = ("attn", "mlp") if kind == "any" else (kind,)
    if not set(kinds) <= {"attn", "mlp", "block"}:
        raise UserError(f"{kind!r} is not a kind of sublayer; choose from attn, mlp, block, any")
    return {SkipSet.parse(name): 1 - cosine for name, cosine in similarity.by_candidate(*kinds).items()}


def solve(damage: dict[SkipSet, float], times: SublayerTimes, saved: float) -> SkipSet:
    """The skip set of least damage that saves so many seconds.

    Args:
        damage: what may go → its damage.
        times: seconds of a pass and of its sublayers.
        saved: seconds to save.

    Raises:
        OutOfReach: all of them together save less.
        UserError: the solver came to nothing.
    """
    each = np.array([times.of(one) for one in damage])
    if each.clip(0).sum() < saved:
        most = times.whole / (times.whole - each.clip(0).sum())
        raise OutOfReach(
            f"leaving all of it out is predicted to give {most:.2f}x, "
            f"and {times.whole / (times.whole - saved):.2f}x was asked; ask for less, or take --kind any"
        )
    solution: Any = milp(
        # Without the small cost, candidates without damage would go even where they are not needed.
        np.array(list(damage.values())) + 1e-9,
        constraints=LinearConstraint(each / times.whole, lb=saved / times.whole),
        bounds=Bounds(0, 1),
        integrality=np.ones(len(each)),
    )
    if solution.x is None:
        raise UserError(f"no skip set was found that saves {saved:.3g} s ({solution.message})")
    chosen = BASE
    for one, is_chosen in zip(damage, solution.x, strict=True):
        chosen |= one if is_chosen > 0.5 else BASE
    return chosen


def choose(
    damage: dict[SkipSet, float], times: SublayerTimes, speedup: float, measure: Callable[[SkipSet], float]
) -> Approach:
    """The rounds towards a speed-up with `solve`; arguments and errors as `approach`."""
    return approach(lambda now, saved: solve(damage, now, saved), damage, times, speedup, measure)


def approach(
    find: Find,
    damage: dict[SkipSet, float],
    times: SublayerTimes,
    speedup: float,
    measure: Callable[[SkipSet], float],
) -> Approach:
    """Finds a set, measures it, and finds another with corrected times until one reaches the speed-up.

    Args:
        find: gives a skip set that saves a time, or raises OutOfReach.
        damage: what may go → its damage.
        times: seconds of a pass and of its sublayers, as first measured.
        speedup: over the whole model.
        measure: the speed-up that a skip set really gives.

    Raises:
        UserError: the speed-up is not above 1 and finite, or beyond what all candidates together are
            predicted to give; or as `find`.
    """
    refuse_speedup(speedup)
    rounds: list[Round] = []
    while len(rounds) < ROUNDS:
        try:
            skip = find(times, times.whole * (1 - 1 / speedup))
        except OutOfReach:
            if not rounds:
                raise
            return Approach(rounds, False, times)  # with the corrected times nothing reaches it
        if rounds and skip == rounds[-1].skip:  # the correction was too small to change the choice
            times = times.scaled(0.97)
            continue
        predicted = times.whole / (times.whole - times.of(skip))
        total = sum(damage[one] for one in damage if not one - skip)
        rounds.append(Round(skip, total, predicted, measure(skip)))
        if rounds[-1].measured >= speedup:
            return Approach(rounds, True, times)
        saved = 1 - 1 / rounds[-1].measured
        times = times.scaled(min(0.97, max(0.5, saved * times.whole / max(times.of(skip), 1e-12))))
    return Approach(rounds, False, times)
