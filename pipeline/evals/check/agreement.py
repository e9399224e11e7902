"""How near two sets of outputs are, and how near is near enough: the function that Polygraphy compares with.

The limits come from measured noise; docs/notes.md has the numbers. All of them are relative to the
reference's own size, so that they hold for logits of 0.1 (a tiny random model) and of 30 (a trained one).

Legend: N positions or vectors of an output, V vocabulary, D length of the last axis.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from polygraphy.comparator import IterationResult

from pipeline.store.records import AgreementRecord, CheckLimits
from pipeline.types import Precision

_TINY = 1e-30
NOT_FINITE = "it holds NaN or infinity"

LIMITS: dict[Precision, CheckLimits] = {
    "fp32": CheckLimits(max_rel=3e-3, cosine=1 - 1e-6),
    "fp16": CheckLimits(max_rel=0.25, cosine=0.995, noise_factor=3.0, noise_floor=2e-3),
}

Agreements = dict[str, dict[str, AgreementRecord]]
"""feed → output → how near it is."""


def limit_by_noise(limits: CheckLimits, noise: float | None) -> float | None:
    """The limit of max_rel that follows from PyTorch's own error.

    Args:
        limits: of the artefact's precision.
        noise: max_rel of PyTorch in that precision.

    Returns:
        noise_factor · noise + noise_floor; None where there is no noise, or where it is not finite
        (overflow), which is no yardstick.
    """
    if noise is None or not math.isfinite(noise):
        return None
    return limits.noise_factor * noise + limits.noise_floor


def is_stable(limits: CheckLimits, noise: float | None) -> bool:
    """Whether max_rel and cosine can judge: PyTorch's own error alone would not exceed them."""
    limit = limit_by_noise(limits, noise)
    return limit is None or limit <= limits.max_rel


def agree(
    a: npt.NDArray[Any], b: npt.NDArray[Any], limits: CheckLimits, *, logits: bool, stable: bool = True
) -> AgreementRecord:
    """Measures and judges one output.

    Args:
        a: the artefact's, [..., D].
        b: the reference's, [..., D].
        limits: those that are applied, max_rel and cosine.
        logits: the last axis is the vocabulary, so that tokens are ranked too.
        stable: False leaves the cosine out of the judgement.
    """
    limit = limits.max_rel
    if a.shape != b.shape:
        return _failure(f"its shape is {list(a.shape)}, the reference's {list(b.shape)}", limit)
    if not np.isfinite(b).all():
        return _failure("the reference itself is not finite", limit)
    if not np.isfinite(a).all():
        return _failure(NOT_FINITE, limit)
    a, b = (array.astype(np.float64).reshape(-1, array.shape[-1]) for array in (a, b))
    difference = np.abs(a - b)
    size = np.maximum(np.abs(b), np.sqrt(np.mean(b**2)) + _TINY)
    max_rel = float((difference / size).max())
    cosine = _least_cosine(a, b)
    top1, top5, flips = _ranks(a, b, 2 * limit * size) if logits else (None, None, None)
    why = _why(max_rel, cosine if stable else 1.0, flips, limits)
    return AgreementRecord(
        max_abs=float(difference.max()),
        max_rel=max_rel,
        cosine=cosine,
        top1=top1,
        top5=top5,
        flips=flips,
        limit=limit,
        stable=stable,
        passed=not why,
        why=why,
    )


def _why(max_rel: float, cosine: float, flips: int | None, limits: CheckLimits) -> str:
    """The first reason for failing, in words; '' where there is none."""
    if max_rel > limits.max_rel:
        return f"max_rel {max_rel:.2e} is above {limits.max_rel:.2e}"
    if cosine < limits.cosine:
        return f"cosine {cosine:.8f} is below {limits.cosine:.8f}"
    if flips:
        return f"the most likely token differs at {flips} positions with a clear margin"
    return ""


def _failure(why: str, limit: float) -> AgreementRecord:
    """An output that cannot be measured."""
    return AgreementRecord(limit=limit, stable=True, passed=False, why=why)


def _least_cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The least cosine between the rows of a and b, [N, D]; two zero vectors count as parallel.

    The padding token's embedding is a zero vector on both sides.
    """
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    dots = np.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, (a * b).sum(axis=1))
    product = lengths[0] * lengths[1]
    return float((dots / np.where(product == 0, 1.0, product)).min())


def _ranks(a: npt.NDArray[Any], b: npt.NDArray[Any], tolerance: npt.NDArray[Any]) -> tuple[float, float, int]:
    """(top-1 agreement, top-5 agreement, flips beyond the tolerance) of logits [N, V]."""
    count = min(5, b.shape[1])
    order_a, order_b = (np.argsort(-x, axis=1, kind="stable")[:, :count] for x in (a, b))
    same = order_a[:, 0] == order_b[:, 0]
    overlap = np.mean(
        [len(set(x) & set(y)) / count for x, y in zip(order_a.tolist(), order_b.tolist(), strict=True)]
    )
    best = np.take_along_axis(b, order_b[:, :1], axis=1)[:, 0]
    second = np.take_along_axis(b, order_b[:, min(1, count - 1)][:, None], axis=1)[:, 0]
    clear = best - second > np.take_along_axis(tolerance, order_b[:, :1], axis=1)[:, 0]
    return float(same.mean()), float(overlap), int((~same & clear).sum())


class CompareOutputs:
    """Polygraphy's compare function: (artefact's IterationResult, reference's) → output → agreement.

    It is called once a feed. An output's noise is the largest over the feeds on which the output is
    stable, because on one short row it may happen to be small. A variant without its first MLPs may
    amplify rounding a hundredfold on some text: on a feed where an output is unstable, the noise of that
    feed is its limit there, and loosens no other feed's.

    Args:
        limits: of the artefact's precision.
        noise: feed by feed, output → max_rel of PyTorch in that precision; empty where there is no such run.
    """

    def __init__(self, limits: CheckLimits, noise: Sequence[Mapping[str, float | None]] = ()) -> None:
        self.limits = limits
        self._feeds = iter(noise)
        self._pooled: dict[str, float] = {}
        for name, value in (pair for feed in noise for pair in feed.items()):
            if value is not None and math.isfinite(value) and is_stable(limits, value):
                self._pooled[name] = max(self._pooled.get(name, 0.0), value)

    def __call__(
        self, outputs: IterationResult, reference: IterationResult
    ) -> OrderedDict[str, AgreementRecord]:
        """Output → agreement, for the next feed."""
        noise = next(self._feeds, {})
        agreements: OrderedDict[str, AgreementRecord] = OrderedDict()
        for name in dict.fromkeys([*reference.keys(), *outputs.keys()]):
            stable = is_stable(self.limits, noise.get(name))
            by_noise = limit_by_noise(self.limits, self._pooled.get(name) if stable else noise.get(name))
            limit = self.limits.max_rel if by_noise is None else by_noise
            if name not in outputs or name not in reference:
                side = "artefact" if name not in outputs else "reference"
                agreements[name] = _failure(f"the {side} has no such output", limit)
            else:
                agreements[name] = agree(
                    np.asarray(outputs[name]),
                    np.asarray(reference[name]),
                    self.limits.replaced(max_rel=limit),
                    logits=name.endswith("logits"),
                    stable=stable,
                )
        return agreements


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all agreements of a check say together.

    Attributes:
        failures: in words, each output that is beyond its limits, or that no feed can judge.
        unstable: outputs that rounding alone moves as far.
        outputs: how many were compared.
        worst: statistic → its worst value over all logits; None where some logits cannot be measured.
    """

    failures: tuple[str, ...]
    unstable: tuple[str, ...]
    outputs: int
    worst: dict[str, float] | None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def judge(agreements: Agreements) -> Verdict:
    """The verdict over all feeds; an output that no feed can judge is a failure too."""
    every = [(feed, name, one) for feed, outputs in agreements.items() for name, one in outputs.items()]
    failures = [f"{feed}, {name}: {one.why}" for feed, name, one in every if not one.passed]
    judged = {name for _, name, one in every if one.stable}
    failures += [
        f"every feed, {name}: PyTorch's own fp16 is too far from fp32 to judge it"
        for name in dict.fromkeys(name for _, name, _ in every)
        if name not in judged
    ]
    unstable = tuple(f"{feed}, {name}" for feed, name, one in every if not one.stable)
    logits = [one for _, name, one in every if name.endswith("logits")]
    return Verdict(tuple(failures), unstable, len(every), _worst(logits))


def _worst(logits: list[AgreementRecord]) -> dict[str, float] | None:
    """Statistic → its worst value; None where one of the outputs was not measured."""
    if any(one.top1 is None for one in logits):
        return None
    largest = {name: max(getattr(one, name) for one in logits) for name in ("max_abs", "max_rel")}
    return largest | {name: min(getattr(one, name) for one in logits) for name in ("cosine", "top1", "top5")}
