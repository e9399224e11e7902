"""Statistics of agreement, the limits that noise sets, and the verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from polygraphy.comparator import IterationResult

from pipeline.evals.check import agreement
from pipeline.evals.check.agreement import LIMITS, CompareOutputs, agree
from pipeline.store.records import CheckLimits

LOOSE = CheckLimits(max_rel=0.1, cosine=0.9)


def test_agreement_statistics() -> None:
    reference = np.array([[3.0, 4.0, 0.0]])  # rms is 2.89
    outputs = np.array([[3.0, 4.0, 0.2]])
    near = agree(outputs, reference, LOOSE, logits=True)
    assert near.passed and near.why == "" and near.limit == LOOSE.max_rel
    assert near.max_abs == pytest.approx(0.2) and near.max_rel == pytest.approx(0.2 / np.sqrt(25 / 3))
    assert near.cosine == pytest.approx(25 / (5 * np.sqrt(25.04)))
    assert (near.top1, near.top5, near.flips) == (1.0, 1.0, 0)
    cache = agree(outputs, reference, LOOSE, logits=False)
    assert (cache.top1, cache.top5, cache.flips) == (None, None, None) and cache.cosine == near.cosine


def test_two_zero_vectors_are_parallel_and_one_is_not() -> None:
    zero, one = np.zeros((1, 3)), np.array([[1.0, 0.0, 0.0]])
    both = agree(np.vstack([zero, one]), np.vstack([zero, one]), LOOSE, logits=False)
    assert both.passed and both.cosine == 1.0
    assert agree(zero, one, LOOSE.replaced(max_rel=9.0), logits=False).why.startswith("cosine 0.0")


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ([[np.nan, 4.0, 0.0]], "NaN or infinity"),
        ([[np.inf, 4.0, 0.0]], "NaN or infinity"),
        ([[3.0, 4.0]], "shape"),
        ([[4.0, 3.0, 0.0]], "max_rel"),
    ],
)
def test_agreement_refuses(outputs: list[list[float]], why: str) -> None:
    far = agree(np.array(outputs), np.array([[3.0, 4.0, 0.0]]), LOOSE, logits=True)
    assert not far and not far.passed and why in far.why


def test_what_cannot_be_measured_has_no_statistics() -> None:
    far = agree(np.array([[np.nan, 4.0]]), np.array([[3.0, 4.0]]), LOOSE, logits=True)
    assert (far.max_abs, far.max_rel, far.cosine, far.top1, far.limit) == (None, None, None, None, 0.1)
    verdict = agreement.judge({"a": {"prefill/logits": far}})
    assert not verdict.passed and verdict.worst is None
    assert verdict.failures == ("a, prefill/logits: it holds NaN or infinity",)


def test_a_missing_output_fails_on_either_side() -> None:
    compare = CompareOutputs(LOOSE)
    empty = IterationResult({})
    assert compare(empty, one(0.0))["x"].why == "the artefact has no such output"
    assert compare(one(0.0), empty)["x"].why == "the reference has no such output"


def test_ties_may_flip_and_clear_margins_may_not() -> None:
    reference = np.array([[3.0, 3.01, 0.0]])
    assert agree(np.array([[3.01, 3.0, 0.0]]), reference, LOOSE, logits=True).flips == 0
    limits = LOOSE.replaced(cosine=-1.0)
    clear = agree(np.array([[4.0, 3.0, 0.0]]), np.array([[3.0, 4.0, 0.0]]), limits, logits=True)
    assert clear.flips == 1 and clear.top1 == 0.0 and clear.top5 == 1.0


def one(value: float) -> IterationResult:
    """An output of one vector, `value` away from [1, 1, …]."""
    return IterationResult({"x": np.full((1, 4), 1.0) + np.array([[value, 0, 0, 0]])})


def judge(errors: list[float], noise: list[float]) -> list[Any]:
    func = CompareOutputs(LIMITS["fp16"], [{"x": value} for value in noise])
    return [func(one(error), one(0.0))["x"] for error in errors]


def test_noise_draws_the_fp16_limit_over_all_stable_feeds() -> None:
    small, large = judge([0.031, 0.033], [1e-3, 1e-2])
    assert small.limit == large.limit == pytest.approx(3 * 1e-2 + 2e-3) and small.passed and not large.passed


def test_an_unstable_feed_is_held_to_its_own_noise_and_loosens_no_other() -> None:
    steady, wild = judge([0.04, 0.45], [1e-2, 0.86])
    assert (steady.stable, steady.passed, steady.limit) == (True, False, pytest.approx(0.032))
    assert (wild.stable, wild.passed, wild.limit) == (False, True, pytest.approx(3 * 0.86 + 2e-3))
    assert not judge([3.0], [0.86])[0].passed and not judge([float("nan")], [0.86])[0].passed


def test_overflow_of_pytorch_is_no_yardstick() -> None:
    overflowed, usual = judge([0.2, 0.04], [float("inf"), 1e-2])
    assert usual.limit == pytest.approx(0.032) and not usual.passed
    assert overflowed.stable and overflowed.limit <= LIMITS["fp16"].max_rel and not overflowed.passed
    assert judge([0.2], [float("inf")])[0].limit == LIMITS["fp16"].max_rel


def test_what_no_feed_can_judge_fails() -> None:
    wild = judge([0.4], [0.9])[0]
    assert wild.passed
    verdict = agreement.judge({"a": {"decode/logits": wild}, "b": {"decode/logits": wild}})
    assert not verdict.passed and "every feed, decode/logits" in verdict.failures[0]
    assert verdict.unstable == ("a, decode/logits", "b, decode/logits") and verdict.outputs == 2
    steady = judge([0.01], [1e-2])[0]
    assert agreement.judge({"a": {"decode/logits": wild}, "b": {"decode/logits": steady}}).passed


def test_the_worst_of_all_logits() -> None:
    reference = np.array([[3.0, 4.0, 0.0]])
    near, far = (
        agree(reference + np.array([[0, 0, by]]), reference, LOOSE, logits=True) for by in (0.1, 0.2)
    )
    other = agree(reference, reference, LOOSE, logits=False)
    feed = {"prefill/logits": near, "decode/logits": far, "present.0.key": other}
    worst = agreement.judge({"a": feed}).worst
    assert worst == {
        "max_abs": far.max_abs, "max_rel": far.max_rel, "cosine": far.cosine, "top1": 1.0, "top5": 1.0
    }  # fmt: skip
