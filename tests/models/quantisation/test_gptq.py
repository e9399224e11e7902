"""GPTQ: held to OBQ's own steps, each with an inverse of what is left, and to what it is to make small."""

import numpy as np
import pytest

from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Blocks, dequantised, rounded
from pipeline.models.quantisation.gptq import DAMPING, added, gptq, inverse_factor
from pipeline.types import UserError

IN, OUT, B = 32, 6, 8


def drawn(rows=IN, columns=OUT, tokens=200, seed=0):
    """(weight, second moment of inputs that are correlated and of different sizes)."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((rows, rows)) / np.sqrt(rows) + np.eye(rows)
    inputs = rng.standard_normal((tokens, rows)) @ mix * np.exp(rng.standard_normal(rows))
    return (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32), inputs.T @ inputs


def damped(hessian):
    return hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))


def loss(weight, quantised, hessian):
    """tr((W − Q)ᵀ H (W − Q))."""
    error = weight.astype(np.float64) - dequantised(quantised)
    return float(np.trace(error.T @ hessian @ error))


def stepwise(weight, hessian, scales, bits):
    """(values, lost): one input after another, with the inverse of the rest of H made anew for each.

    Optimal brain quantisation in a fixed order (Frantar et al. 2022, equation 2); `lost` is what the
    steps add to the error: (w − q)² over the inverse's first number.
    """
    rest, values, lost = weight.astype(np.float64), np.empty(weight.shape, np.int8), np.zeros(weight.shape)
    low, high = blocks.limits(bits)
    for i in range(len(rest)):
        inverse = np.linalg.inv(hessian[i:, i:])
        scale = scales[i * len(scales) // len(rest)].astype(np.float64)
        values[i] = np.clip(np.rint(rest[i] / scale), low, high)
        error = rest[i] - values[i] * scale
        lost[i] = error**2 / inverse[0, 0]
        rest[i:] -= inverse[:, :1] * error / inverse[0, 0]
    return values, lost


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_those_of_the_steps_with_an_inverse_each(bits, seed):
    weight, hessian = drawn(seed=seed)
    quantised = gptq(weight, hessian, bits, B)
    values, lost = stepwise(weight, damped(hessian), quantised.scales, bits)
    assert np.array_equal(quantised.values, values)
    assert loss(weight, quantised, damped(hessian)) == pytest.approx(lost.sum(), rel=1e-5)


def test_scales_are_chosen_when_the_block_is_reached_by_what_its_errors_cost():
    """Of the weights as they are by then; an error costs what is left of it after the best mending."""
    weight, hessian = drawn()
    scales, matrix = gptq(weight, hessian, 4, B).scales, damped(hessian)
    rest = weight.astype(np.float64)
    for block in range(IN // B):
        start, stop = block * B, (block + 1) * B
        costs = [1 / np.linalg.inv(matrix[i:, i:])[0, 0] for i in range(start, stop)]
        wanted = blocks.best_scales(rest[start:stop].astype(np.float32), 4, np.array(costs))
        assert np.array_equal(scales[block], wanted)
        values, _ = stepwise(rest[start:], matrix[start:, start:], np.tile(wanted, (IN // B - block, 1)), 4)
        error = rest[start:stop] - values[:B] * wanted.astype(np.float64)
        # All later inputs mend it: the least of the quadratic form, given the error.
        rest[stop:] += np.linalg.solve(matrix[stop:, stop:], matrix[stop:, start:stop] @ error)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [4, 8])
def test_the_outputs_err_less_than_with_weights_that_are_rounded_to_nearest(bits, seed):
    weight, hessian = drawn(128, 40, 500, seed)
    assert loss(weight, gptq(weight, hessian, bits, 32), hessian) < 0.8 * loss(
        weight, rounded(weight, bits, 32), hessian
    )


def test_with_inputs_that_have_nothing_in_common_weights_are_rounded_to_nearest():
    weight, _ = drawn()
    quantised, nearest = gptq(weight, np.eye(IN), 4, B), rounded(weight, 4, B)
    assert np.array_equal(quantised.values, nearest.values)
    assert np.array_equal(quantised.scales, nearest.scales)


def test_the_factor_is_that_of_the_inverse():
    _, hessian = drawn(64)
    factor = inverse_factor(hessian).astype(np.float64)
    assert np.array_equal(factor, np.triu(factor))
    inverse = np.linalg.inv(damped(hessian))
    np.testing.assert_allclose(factor.T @ factor, inverse, atol=1e-6 * np.abs(inverse).max())


def test_an_input_that_was_always_zero_has_its_weights_rounded_to_nearest():
    weight, hessian = drawn()
    dead = [3, 4, 17]
    hessian[dead] = hessian[:, dead] = 0
    quantised = gptq(weight, hessian, 4, B)
    wide = np.repeat(quantised.scales, B, axis=0)
    assert np.array_equal(quantised.values[dead], blocks.nearest(weight[dead], wide[dead], 4))
    others = np.delete(np.arange(IN), dead)
    values, _ = stepwise(weight, damped(hessian), quantised.scales, 4)
    assert np.array_equal(quantised.values[others], values[others])


def test_inputs_that_are_all_zero_leave_rounding_to_nearest():
    weight, hessian = drawn()
    assert np.array_equal(gptq(weight, hessian * 0, 4, B).values, rounded(weight, 4, B).values)


@pytest.mark.parametrize("factor", [1e-6, 1, 1e6])
def test_a_multiple_of_the_moment_gives_the_same(factor):
    weight, hessian = drawn()
    one, other = gptq(weight, hessian, 4, B), gptq(weight, hessian * factor, 4, B)
    assert np.array_equal(one.values, other.values)


def test_outputs_do_not_depend_on_each_other():
    weight, hessian = drawn(64, 50)
    whole, part = gptq(weight, hessian, 4, 16), gptq(weight[:, 7:21], hessian, 4, 16)
    assert np.array_equal(part.values, whole.values[:, 7:21])
    assert np.array_equal(part.scales, whole.scales[:, 7:21])


def test_what_is_given_stays_as_it_is():
    weight, hessian = drawn()
    before = weight.copy(), hessian.copy()
    assert isinstance(gptq(weight, hessian, 4, B), Blocks)
    assert np.array_equal(weight, before[0]) and np.array_equal(hessian, before[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h * np.nan, "not finite"),
        (lambda h: h - 100 * np.eye(IN) * h.max(), "not positive definite"),
    ],
)
def test_a_moment_of_no_real_inputs_is_refused(change, words):
    weight, hessian = drawn()
    with pytest.raises(UserError, match=words):
        gptq(weight, change(hessian), 4, B)
    weight[0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        gptq(weight, hessian, 4, B)


def test_what_is_added_is_a_share_of_the_mean_and_never_nothing_where_there_is_none():
    assert added(np.diag([1.0, 2.0, 6.0]), 0.01) == pytest.approx(0.03)
    assert added(np.diag([1.0, 2.0, 6.0]), 0.0) == 0.0
    assert added(np.zeros((3, 3))) == added(np.zeros((3, 3)), 0.0) == 1.0
