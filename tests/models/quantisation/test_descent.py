"""Blocks made better: held to least squares and to a search over every single integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Blocks, rounded
from pipeline.models.quantisation.descent import descended, improved, refitted
from pipeline.models.quantisation.gptq import gptq

IN, OUT, B = 48, 7, 16
Array = npt.NDArray[Any]
Problem = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@pytest.fixture
def problem() -> Problem:
    """(W, H), of inputs that depend on each other."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(200, IN)) @ random.normal(size=(IN, IN))
    return random.normal(size=(IN, OUT)).astype(np.float32), (inputs.T @ inputs).astype(np.float32)


def losses(weight: Array, made: Blocks, hessian: Array) -> Array:
    """[out]: the error of each output."""
    error = (weight - blocks.dequantised(made)).astype(np.float64)
    return np.einsum("io,ij,jo->o", error, hessian.astype(np.float64), error)


def test_scales_are_those_of_least_squares(problem: Problem) -> None:
    weight, hessian = problem
    given = rounded(weight, 4, B)
    found = refitted(weight, given, hessian)
    root = np.linalg.cholesky(hessian.astype(np.float64)).T
    for output in range(OUT):
        by_block = np.zeros((IN, IN // B))
        for block in range(IN // B):
            inside = slice(block * B, (block + 1) * B)
            by_block[inside, block] = given.values[inside, output]
        wanted, *_ = np.linalg.lstsq(root @ by_block, root @ weight[:, output], rcond=None)
        np.testing.assert_allclose(found.scales[:, output], wanted, rtol=5e-3, atol=1e-4)
    assert np.array_equal(found.values, given.values)
    assert (losses(weight, found, hessian) <= losses(weight, given, hessian) * (1 + 1e-6)).all()


def test_descent_ends_where_no_single_integer_is_better(problem: Problem) -> None:
    weight, hessian = problem
    made = rounded(weight, 4, B)
    before = losses(weight, made, hessian)
    for _ in range(30):
        made = descended(weight, made, hessian, 4)
        after = losses(weight, made, hessian)
        assert (after <= before * (1 + 1e-5)).all()
        before = after
    low, high = blocks.limits(4)
    assert low <= made.values.min() and made.values.max() <= high
    for i in range(IN):
        for step in (-1, 1):
            other = made.values.copy()
            other[i] = np.clip(other[i] + step, low, high)
            assert (losses(weight, Blocks(other, made.scales), hessian) >= before * (1 - 1e-4)).all()


def test_it_is_better_than_gptq_alone(problem: Problem) -> None:
    weight, hessian = problem
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(IN, dtype=np.float32)
    alone = gptq(weight, hessian, 4, B)
    found = improved(weight, alone, hessian, 4)
    assert losses(weight, found, damped).sum() < 0.97 * losses(weight, alone, damped).sum()


def test_a_block_of_zeros_stays_one() -> None:
    weight = np.zeros((32, 3), np.float32)
    weight[16:] = np.random.default_rng(1).normal(size=(16, 3))
    found = improved(weight, rounded(weight, 4, 16), np.eye(32), 4)
    assert not blocks.dequantised(found)[:16].any() and (found.scales != 0).all()
