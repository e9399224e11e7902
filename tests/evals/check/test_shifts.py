"""How far logits have moved: the numbers, and the words for them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from pipeline.evals.check import shifts
from pipeline.store.records import CheckRecord, LogitShift, QuantisationShifts, Skipped


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_the_numbers_by_hand() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, 3, 7)), draw.normal(size=(2, 3, 7))
    moved = shifts.of_logits([(first[:1], second[:1]), (first[1:], second[1:])])
    assert moved is not None and moved.positions == 6
    wanted = entropy(softmax(first), softmax(second), axis=-1)  # of scipy
    assert moved.divergence == pytest.approx(wanted.mean())
    assert moved.mean_abs == pytest.approx(np.abs(first - second).mean())
    assert moved.max_abs == np.abs(first - second).max()
    assert moved.top1 == (first.argmax(-1) == second.argmax(-1)).mean()


def test_a_constant_moves_logits_and_no_probability() -> None:
    logits = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float16)
    moved = shifts.of_logits([(logits, logits + np.float16(2))])
    assert moved is not None and moved.top1 == 1 and moved.mean_abs == pytest.approx(2, abs=1e-2)
    assert 0 <= moved.divergence < 1e-5


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_no_number_of_what_is_none(odd: float) -> None:
    logits = np.ones((2, 3))
    broken = logits.copy()
    broken[1, 1] = odd
    assert shifts.of_logits([(logits, broken)]) is None
    assert shifts.of_logits([(broken, logits)]) is None


def record(moved: QuantisationShifts | None) -> CheckRecord:
    return CheckRecord(
        model="m", variant="base", skip=Skipped(), precision="fp32", artefact="a", sha256="0" * 64,
        passed=True, quantisation="int4", shifts=moved,
    )  # fmt: skip


def test_what_is_said() -> None:
    far = LogitShift(positions=9, divergence=0.031, mean_abs=0.2, max_abs=1.5, top1=0.9)
    near = LogitShift(positions=9, divergence=1e-5, mean_abs=0.002, max_abs=0.01, top1=1.0)
    both = shifts.lines(record(QuantisationShifts(weights=far, kernel=near)))
    assert len(both) == 2 and both[0].lstrip().startswith("int4 beside the checkpoint's own weights")
    assert "0.2 on average, 1.5 at most; divergence 0.031 nats, top-1 90%" in both[0]
    assert "8-bit" in both[1] and "1e-05 nats" in both[1]
    assert len(shifts.lines(record(QuantisationShifts(weights=far)))) == 1
    assert shifts.lines(record(None)) == []
