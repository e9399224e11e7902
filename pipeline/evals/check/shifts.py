"""How far quantised weights, and the kernel that multiplies with them, move a model's logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from polygraphy.comparator import RunResults
from scipy.special import log_softmax

from pipeline.runtime.runner import Array
from pipeline.store.records import CheckRecord, LogitShift


def between(outputs: RunResults, first: int, second: int) -> LogitShift | None:
    """How far the logits of one runner are from another's, over all feeds.

    Args:
        outputs: of all runners.
        first: place of the runner that is the measure.
        second: place of the other.

    Returns:
        None where some logits are not finite.
    """
    pairs: list[tuple[Array, Array]] = []
    for a, b in zip(outputs[first][1], outputs[second][1], strict=True):
        pairs += [(np.asarray(a[name]), np.asarray(b[name])) for name in a if name.endswith("logits")]
    return of_logits(pairs)


def of_logits(pairs: list[tuple[Array, Array]]) -> LogitShift | None:
    """How far the second logits [..., V] of each pair are from the first; None where one is not finite."""
    sums: dict[str, Any] = {"divergence": 0.0, "absolute": 0.0, "same": 0, "largest": 0.0}
    positions = numbers = 0
    for pair in pairs:
        a, b = (one.astype(np.float64).reshape(-1, one.shape[-1]) for one in pair)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return None
        ours, theirs = log_softmax(a, axis=1), log_softmax(b, axis=1)
        difference = np.abs(a - b)
        sums["divergence"] += (np.exp(ours) * (ours - theirs)).sum()
        sums["absolute"] += difference.sum()
        sums["largest"] = max(sums["largest"], difference.max())
        sums["same"] += (a.argmax(1) == b.argmax(1)).sum()
        positions, numbers = positions + len(a), numbers + a.size
    return LogitShift(
        positions=positions,
        divergence=max(float(sums["divergence"]) / positions, 0.0),
        mean_abs=float(sums["absolute"]) / numbers,
        max_abs=float(sums["largest"]),
        top1=float(sums["same"]) / positions,
    )


def lines(record: CheckRecord) -> list[str]:
    """What a check of quantised weights says beside its verdict, for people."""
    if record.shifts is None:
        return []
    said = {
        f"{record.quantisation} beside the checkpoint's own weights": record.shifts.weights,
        "8-bit activations of the fast kernel, which everything but check runs": record.shifts.kernel,
    }
    return [
        f"  {what}: logits moved by {one.mean_abs:.2g} on average, {one.max_abs:.2g} at most; "
        f"divergence {one.divergence:.2g} nats, top-1 {one.top1:.0%}"
        for what, one in said.items()
        if one is not None
    ]
