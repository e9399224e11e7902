"""How near two sets of outputs are, and how near is near enough: the compare function that Polygraphy's Comparator calls.

The limits come from measured noise; docs/notes.md has the numbers. All of them are relative to the reference's own
size, so that they hold for logits of 0.1 (a tiny random model) and of 30 (a trained one) alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from polygraphy.comparator import IterationResult

from pipeline.types import Precision

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Limits:
    """What an artefact of one precision may differ from the fp32 reference.

    Attributes:
        max_rel: limit of `Agreement.max_rel`, whatever the noise.
        cosine: least `Agreement.cosine`.
        noise_factor, noise_floor: where PyTorch ran in the artefact's precision too, its own distance from the fp32
            reference is the noise, and max_rel must stay under noise_factor · noise + noise_floor as well.
    """

    max_rel: float
    cosine: float
    noise_factor: float = 0.0
    noise_floor: float = 0.0

    def by_noise(self, noise: float | None) -> float | None:
        """The limit of max_rel that this noise draws; noise that is not finite (overflow) is no yardstick."""
        if noise is None or not np.isfinite(noise):
            return None
        return self.noise_factor * noise + self.noise_floor

    def is_stable(self, noise: float | None) -> bool:
        """Whether max_rel and cosine can judge: PyTorch's own error is not so large that a right artefact may exceed them."""
        drawn = self.by_noise(noise)
        return drawn is None or drawn <= self.max_rel


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(max_rel=3e-3, cosine=1 - 1e-6),
    "fp16": Limits(max_rel=0.25, cosine=0.995, noise_factor=3.0, noise_floor=2e-3),
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """One output of one feed: an artefact's a beside the reference's b.

    Attributes:
        max_abs: max |a − b|.
        max_rel: max |a − b| / max(|b|, rms(b)), rms over the whole output: near-zero elements are measured by the
            output's usual size.
        cosine: of the last axis, the least over all vectors (a logit row, a head's key).
        top1: share of positions with the same most likely token; None where the output holds no logits.
        top5: mean share of the five most likely tokens that are the same.
        flips: positions whose most likely token differs although the reference's margin over its second exceeds what the
            limit allows both to move.
        limit: the limit of max_rel that was applied.
        stable: False where rounding alone moves the reference so far that only PyTorch's own error can be the limit.
        why: '' or the first reason for failing.
    """

    max_abs: float
    max_rel: float
    cosine: float
    top1: float | None
    top5: float | None
    flips: int | None
    limit: float
    stable: bool
    passed: bool
    why: str

    def __bool__(self) -> bool:
        return self.passed

    def record(self) -> dict[str, Any]:
        """For JSON, which has no infinity: what could not be measured is left out."""
        return {
            k: v for k, v in asdict(self).items() if v is not None and (isinstance(v, str) or np.isfinite(v))
        }


Found = dict[str, dict[str, Agreement]]
"""feed → output → Agreement."""


def _failed(why: str, limit: float) -> Agreement:
    """An output that cannot be measured."""
    return Agreement(float("inf"), float("inf"), 0.0, None, None, None, limit, True, False, why)


def agree(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    limit: float,
    least_cosine: float,
    *,
    logits: bool,
    stable: bool = True,
) -> Agreement:
    """Measures and judges one output; a is the artefact's, b the reference's, vectors along the last axis."""
    if a.shape != b.shape:
        return _failed(f"its shape is {list(a.shape)}, the reference's {list(b.shape)}", limit)
    if not np.isfinite(b).all():
        return _failed("the reference itself is not finite", limit)
    if not np.isfinite(a).all():
        return _failed("it holds NaN or infinity", limit)
    a, b = (x.astype(np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    difference = np.abs(a - b)
    size = np.maximum(np.abs(b), np.sqrt(np.mean(b**2)) + _TINY)
    max_rel = float((difference / size).max())
    cosine = _least_cosine(a, b)
    top1, top5, flips = _ranks(a, b, 2 * limit * size) if logits else (None, None, None)
    why = ""
    if max_rel > limit:
        why = f"max_rel {max_rel:.2e} is above {limit:.2e}"
    elif stable and cosine < least_cosine:
        why = f"cosine {cosine:.8f} is below {least_cosine:.8f}"
    elif flips:
        why = f"the most likely token differs at {flips} positions with a clear margin"
    return Agreement(float(difference.max()), max_rel, cosine, top1, top5, flips, limit, stable, not why, why)


def _least_cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The least cosine between the rows of a and b; two rows of nought (the padding token's embedding) point the same way."""
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
    """Polygraphy compare function: (artefact's IterationResult, reference's) → {output: Agreement}; one call a feed.

    An output's noise is the largest over the feeds on which it is stable: of one short row it may happen to be small.
    Where a feed is unstable for an output (a variant without its first MLPs may amplify rounding a hundredfold on some
    text), its noise is its own limit and loosens no other feed's.

    Args:
        limits: of the artefact's precision.
        noise: feed by feed, output → max_rel of PyTorch in that precision; empty where there is no such run.
    """

    def __init__(self, limits: Limits, noise: Sequence[Mapping[str, float]] = ()) -> None:
        self.limits = limits
        self._feeds = iter(noise)
        self._pooled: dict[str, float] = {}
        for name, value in (pair for feed in noise for pair in feed.items()):
            if np.isfinite(value) and limits.is_stable(value):
                self._pooled[name] = max(self._pooled.get(name, 0.0), value)

    def __call__(self, ours: IterationResult, reference: IterationResult) -> OrderedDict[str, Agreement]:
        feed = next(self._feeds, {})
        found: OrderedDict[str, Agreement] = OrderedDict()
        for name in dict.fromkeys([*reference.keys(), *ours.keys()]):
            stable = self.limits.is_stable(feed.get(name))
            drawn = self.limits.by_noise(self._pooled.get(name) if stable else feed.get(name))
            limit = self.limits.max_rel if drawn is None else drawn
            if name not in ours or name not in reference:
                side = "artefact" if name not in ours else "reference"
                found[name] = _failed(f"the {side} has no such output", limit)
            else:
                a, b = np.asarray(ours[name]), np.asarray(reference[name])
                found[name] = agree(
                    a, b, limit, self.limits.cosine, logits=name.endswith("logits"), stable=stable
                )
        return found


def judge(found: Found) -> dict[str, Any]:
    """passed, the failures in words, what is unstable, and the worst of each statistic of the logits.

    The worst is None where some logits cannot be measured. An output that no feed can judge is a failure too.
    """
    every = [(feed, name, a) for feed, outputs in found.items() for name, a in outputs.items()]
    failures = [f"{feed}, {name}: {a.why}" for feed, name, a in every if not a.passed]
    judged = {name for _, name, a in every if a.stable}
    failures += [
        f"every feed, {name}: PyTorch's own fp16 is too far from fp32 to judge it"
        for name in dict.fromkeys(name for _, name, _ in every)
        if name not in judged
    ]
    logits = [a for _, name, a in every if name.endswith("logits")]
    worst: dict[str, float] | None = None
    if all(a.top1 is not None for a in logits):
        worst = {name: max(getattr(a, name) for a in logits) for name in ("max_abs", "max_rel")}
        worst |= {name: min(getattr(a, name) for a in logits) for name in ("cosine", "top1", "top5")}
    unstable = [f"{feed}, {name}" for feed, name, a in every if not a.stable]
    return {
        "passed": not failures,
        "failures": failures,
        "unstable": unstable,
        "outputs": len(every),
        "worst": worst,
    }
