"""Blocks made better one number at a time: integers by cyclic coordinate descent, scales by least squares.

QuantEase (Behdin et al. 2023, arXiv:2309.01885, algorithm 2): with all others held, the best integer of an
input is the one nearest to where the error's gradient vanishes. GPTQ passes each input once, and never looks
back. Scales follow in closed form from the integers: of each output, as many unknowns as it has blocks.

Legend: B block size; W the weight [in, out], Q its integers, s its scales; H [in, in] with λ on its diagonal,
as in `gptq`. Neither step raises tr((W − sQ)ᵀ H (W − sQ)), but for the rounding of scales to float16. On C4 a
tenth of GPTQ's loss of SmolLM2 in int4 is won (docs/notes.md).
"""

from __future__ import annotations

import numpy as np

from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import LEAST_SCALE, Array, Blocks
from pipeline.models.quantisation.gptq import added

ROUNDS = 2
_RIDGE = 1e-4
"""Of the mean of a scale's curvature, what holds it where it was: a block of zeros has none."""


def improved(weight: Array, given: Blocks, hessian: Array, bits: int, rounds: int = ROUNDS) -> Blocks:
    """Blocks whose layer's outputs have a smaller squared error.

    Args:
        weight: W [in, out] fp32.
        given: its blocks.
        hessian: H [in, in], before λ is added.
        bits: 4, whose scales may have either sign.
        rounds: of both steps; scales are fitted once more before the first.
    """
    moments = np.array(hessian, np.float32)
    moments[np.diag_indices_from(moments)] += added(moments)
    better = refitted(weight, given, moments)
    for _ in range(rounds):
        better = refitted(weight, descended(weight, better, moments, bits), moments)
    return better


def refitted(weight: Array, given: Blocks, hessian: Array) -> Blocks:
    """The same integers with the scales of least error.

    Arguments as `improved`.
    """
    size, count, outputs = given.block_size, len(given.scales), weight.shape[1]
    values = given.values.astype(np.float32)
    curvature = np.empty((outputs, count, count))
    for block in range(count):
        inside = slice(block * size, (block + 1) * size)
        product = hessian[:, inside] @ values[inside]
        curvature[:, :, block] = (values * product).reshape(count, size, outputs).sum(1).T
    slope = (values * (hessian @ weight)).reshape(count, size, outputs).sum(1).T.astype(np.float64)
    ridge = _RIDGE * np.einsum("obb->o", curvature) / count + np.finfo(np.float32).tiny
    curvature += ridge[:, None, None] * np.eye(count)
    slope += ridge[:, None] * given.scales.T
    scales = np.linalg.solve(curvature, slope[..., None])[..., 0].T.astype(np.float16)
    return Blocks(given.values, np.where(scales == 0, LEAST_SCALE, scales))


def descended(weight: Array, given: Blocks, hessian: Array, bits: int) -> Blocks:
    """The same scales, and each integer in turn the best beside all others.

    Arguments as `improved`.
    """
    size, (low, high) = given.block_size, blocks.limits(bits)
    scales = np.repeat(given.scales.astype(np.float32), size, axis=0)
    values, diagonal = given.values.astype(np.float32), np.diag(hessian)
    slope = hessian @ (weight - values * scales)
    for start in range(0, len(values), size):
        inside = slice(start, start + size)
        own, rest = hessian[inside, inside], slope[inside].copy()
        moved = np.empty_like(rest)
        for i, k in enumerate(range(start, start + size)):
            best = (values[k] + rest[i] / (diagonal[k] * scales[k])).round().clip(low, high)
            moved[i] = (best - values[k]) * scales[k]
            values[k] = best
            rest -= own[:, i, None] * moved[i]
        slope -= hessian[:, inside] @ moved
    return Blocks(values.astype(np.int8), given.scales)
