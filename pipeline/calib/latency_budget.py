"""The skip set of least predicted damage that meets a time: an integer programme over the sublayers, solved by scipy (HiGHS).

    minimise Σ cᵢ·xᵢ   such that   Σ tᵢ·xᵢ ≥ s,   x ∈ {0, 1}

cᵢ: what leaving i out is predicted to cost, 1 − cosine of the stream before and after it; tᵢ: seconds that it takes;
s: seconds to save.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from pipeline.calib.similarity import Similarity
from pipeline.types import BASE, SkipSet, UserError

ROUNDS = 5
"""So many finalists are measured at most."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one pass and of one sublayer of each kind inside it, on one backend at one length."""

    whole: float
    attn: float
    mlp: float

    def of(self, skip: SkipSet) -> float:
        return len(skip.attention) * self.attn + len(skip.mlp) * self.mlp

    def scaled(self, factor: float) -> Times:
        """The same with sublayers that take `factor` times as long."""
        return Times(self.whole, self.attn * factor, self.mlp * factor)


@dataclass(frozen=True, slots=True)
class Round:
    """One finalist: chosen, predicted, measured. Speed-ups are over the whole model."""

    skip: SkipSet
    damage: float
    predicted: float
    measured: float


def candidates(kind: str, told: Similarity) -> dict[SkipSet, float]:
    """What may go → its predicted damage: sublayers of the kind, whole layers for 'block', both kinds for 'any'."""
    kinds = ("attn", "mlp") if kind == "any" else (kind,)
    if not set(kinds) <= {"attn", "mlp", "block"}:
        raise UserError(f"{kind!r} is not a kind of sublayer; choose from attn, mlp, block, any")
    return {
        SkipSet.of(one, [layer]): 1 - float(value)
        for one in kinds
        for layer, value in enumerate(told.cosine("layer" if one == "block" else one))
    }


def solve(damage: dict[SkipSet, float], times: Times, saved: float) -> SkipSet:
    """The set of least damage that saves so many seconds.

    Raises:
        UserError: all of them together save less.
    """
    each = np.array([times.of(one) for one in damage])
    if each.clip(0).sum() < saved:
        most = times.whole / (times.whole - each.clip(0).sum())
        raise UserError(
            f"leaving all of it out is predicted to give {most:.2f}x, and {times.whole / (times.whole - saved):.2f}x was asked; "
            "ask for less, or take --kind any"
        )
    found: Any = milp(
        np.array(list(damage.values())) + 1e-9,  # of what costs nothing, as little as is needed
        constraints=LinearConstraint(each / times.whole, lb=saved / times.whole),
        bounds=Bounds(0, 1),
        integrality=np.ones(len(each)),
    )
    if found.x is None:
        raise UserError(f"no skip set was found that saves {saved:.3g} s ({found.message})")
    chosen = BASE
    for one, taken in zip(damage, found.x, strict=True):
        chosen |= one if taken > 0.5 else BASE
    return chosen


def choose(
    damage: dict[SkipSet, float], times: Times, speedup: float, measure: Callable[[SkipSet], float]
) -> tuple[list[Round], bool]:
    """Solves, measures the finalist, and solves again with corrected times until one reaches the speed-up.

    Args:
        measure: the speed-up that a skip set really gives.

    Returns:
        The rounds, the last one the answer; and whether it reached what was asked.
    """
    if not speedup > 1:
        raise UserError(f"a speed-up of {speedup:g} is none; ask for more than 1")
    rounds: list[Round] = []
    while len(rounds) < ROUNDS:
        try:
            skip = solve(damage, times, times.whole * (1 - 1 / speedup))
        except UserError:
            if not rounds:
                raise
            return rounds, False  # by the corrected times nothing reaches it
        if rounds and skip == rounds[-1].skip:  # the correction was too small to change the choice
            times = times.scaled(0.97)
            continue
        predicted = times.whole / (times.whole - times.of(skip))
        rounds.append(
            Round(skip, sum(damage[one] for one in damage if _within(one, skip)), predicted, measure(skip))
        )
        if rounds[-1].measured >= speedup:
            return rounds, True
        saved = 1 - 1 / rounds[-1].measured
        times = times.scaled(min(0.97, max(0.5, saved * times.whole / max(times.of(skip), 1e-12))))
    return rounds, False


def _within(one: SkipSet, skip: SkipSet) -> bool:
    return set(one.attention) <= set(skip.attention) and set(one.mlp) <= set(skip.mlp)
