"""How near two sets of outputs are, and how near is near enough: the compare function that Polygraphy's Comparator calls.

The limits come from measured noise; docs/notes.md has the numbers. All of them are relative to the reference's own
size, so that they hold for logits of 0.1 (a tiny random model) and of 30 (a trained one) alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
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
    noise_factor: float | None = None
    noise_floor: float = 0.0

    def allowed(self, noise: float | None) -> float:
        """The limit of max_rel for an output whose noise is known; noise that is not finite (overflow) is no yardstick."""
        if self.noise_factor is None or noise is None or not np.isfinite(noise):
            return self.max_rel
        return min(self.max_rel, self.noise_factor * noise + self.noise_floor)


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
        why: '' or the first reason for failing.
    """

    max_abs: float
    max_rel: float
    cosine: float
    top1: float | None
    top5: float | None
    flips: int | None
    limit: float
    passed: bool
    why: str

    def __bool__(self) -> bool:
        return self.passed

    def record(self) -> dict[str, Any]:
        """For JSON, which has no infinity: what could not be measured is left out."""
        return {k: v for k, v in asdict(self).items() if v is not None and (isinstance(v, str) or np.isfinite(v))}


def _failed(why: str, limit: float) -> Agreement:
    """An output that cannot be measured."""
    return Agreement(float("inf"), float("inf"), 0.0, None, None, None, limit, False, why)


def agree(a: npt.NDArray[Any], b: npt.NDArray[Any], limits: Limits, noise: float | None, *, logits: bool) -> Agreement:
    """Measures and judges one output; a is the artefact's, b the reference's, vectors along the last axis."""
    limit = limits.allowed(noise)
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
    elif cosine < limits.cosine:
        why = f"cosine {cosine:.8f} is below {limits.cosine:.8f}"
    elif flips:
        why = f"the most likely token differs at {flips} positions with a clear margin"
    return Agreement(float(difference.max()), max_rel, cosine, top1, top5, flips, limit, not why, why)


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
    overlap = np.mean([len(set(x) & set(y)) / count for x, y in zip(order_a.tolist(), order_b.tolist(), strict=True)])
    best = np.take_along_axis(b, order_b[:, :1], axis=1)[:, 0]
    second = np.take_along_axis(b, order_b[:, min(1, count - 1)][:, None], axis=1)[:, 0]
    clear = best - second > np.take_along_axis(tolerance, order_b[:, :1], axis=1)[:, 0]
    return float(same.mean()), float(overlap), int((~same & clear).sum())


class CompareOutputs:
    """Polygraphy compare function: (artefact's IterationResult, reference's) → {output: Agreement}.

    Args:
        limits: of the artefact's precision.
        noise: output → max_rel of PyTorch in that precision; empty where there is no such run.
    """

    def __init__(self, limits: Limits, noise: Mapping[str, float] | None = None) -> None:
        self.limits = limits
        self.noise = noise or {}

    def __call__(self, ours: IterationResult, reference: IterationResult) -> OrderedDict[str, Agreement]:
        found: OrderedDict[str, Agreement] = OrderedDict()
        for name in dict.fromkeys([*reference.keys(), *ours.keys()]):
            noise = self.noise.get(name)
            if name not in ours or name not in reference:
                side = "artefact" if name not in ours else "reference"
                found[name] = _failed(f"the {side} has no such output", self.limits.allowed(noise))
            else:
                found[name] = agree(
                    np.asarray(ours[name]), np.asarray(reference[name]), self.limits, noise, logits=name.endswith("logits")
                )
        return found
