"""GPTQ: rounding that mends each input's error with the inputs that are not rounded yet.

Frantar et al. 2022 (arXiv:2210.17323), algorithm 1, with a group for every block of inputs, in the order of
the checkpoint: blocks are contiguous in ONNX.

Legend: B block size; W the weight [in, out], Q its quantised form, H = XᵀX [in, in] of the inputs X. What is
to be small is tr((W − Q)ᵀ H (W − Q)), the squared error of the layer's outputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Array, Blocks
from pipeline.types import UserError

DAMPING = 0.01
"""Of the mean of H's diagonal, the share that is added to it."""
Rounded = tuple[npt.NDArray[np.int8], npt.NDArray[np.float16], npt.NDArray[np.float32]]


def gptq(weight: Array, hessian: Array, bits: int, block_size: int, damping: float = DAMPING) -> Blocks:
    """Rounds a weight so that its layer's outputs have a small squared error.

    An input that was always 0 tells nothing of its weights: they are rounded to nearest.

    Args:
        weight: W [in, out] fp32.
        hessian: H [in, in]; any multiple of it gives the same.
        bits: 4 or 8.
        block_size: B; it divides `in`.
        damping: of the mean of H's diagonal, the share that is added to it.

    Raises:
        UserError: as `blocks.rounded`; or H is not finite, or none of a real input.
    """
    blocks.refuse_odd(weight, bits, block_size)
    factor = inverse_factor(hessian, damping)
    rest = np.array(weight, np.float32, order="C")
    values = np.empty(rest.shape, np.int8)
    scales = np.empty((len(rest) // block_size, rest.shape[1]), np.float16)
    for block in range(len(scales)):
        inside = slice(block * block_size, (block + 1) * block_size)
        own, later = factor[inside, inside], factor[inside, inside.stop :]
        values[inside], scales[block], errors = _rounded_block(rest[inside], own, bits)
        rest[inside.stop :] -= later.T @ errors
    return Blocks(values, scales)


def inverse_factor(hessian: Array, damping: float = DAMPING) -> npt.NDArray[np.float32]:
    """U [in, in], upper triangular, with UᵀU = (H + λ)⁻¹: the paper's Cholesky factor of the inverse.

    No inverse is made for it: with J, which reverses the order, J(H + λ)J = LLᵀ makes U = (JLJ)⁻¹.

    Args:
        hessian: H.
        damping: λ over the mean of H's diagonal.

    Raises:
        UserError: H is not finite, or not positive definite even so.
    """
    from scipy.linalg import LinAlgError, cholesky, lapack

    mean = float(np.diag(hessian).mean(dtype=np.float64))
    if not np.isfinite(hessian.sum()):
        raise UserError("the inputs of a layer are not finite; look with `pipeline check --localize`")
    damped = np.array(hessian[::-1, ::-1], np.float64)
    damped[np.diag_indices_from(damped)] += damping * mean if mean else 1.0
    try:
        lower = cholesky(damped, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise UserError(
            f"the second moment of a layer's {len(hessian)} inputs is not positive definite; gather it anew"
        ) from None
    factor, _ = lapack.dtrtri(lower[::-1, ::-1])  # its diagonal is positive: nothing can fail
    return np.ascontiguousarray(factor, np.float32)


def _rounded_block(block: npt.NDArray[np.float32], factor: Array, bits: int) -> Rounded:
    """(values [B, out], scales [out], errors [B, out]) of one block, with the scale of the least error.

    W − Q = UᵀE makes tr((W − Q)ᵀ(H + λ)(W − Q)) the sum of E²: each scale is judged by what is to be small.
    """
    values, errors = np.empty(block.shape, np.int8), np.empty_like(block)
    scales = np.empty(block.shape[1], np.float16)
    width = max(blocks.PIECE // len(block), 1)
    for start in range(0, block.shape[1], width):
        piece = slice(start, start + width)
        part = np.ascontiguousarray(block[:, piece])
        least = np.full(part.shape[1], np.inf, np.float32)
        for tried in blocks.candidates(part, bits):
            integers, lost = _walked(part, factor, tried, bits)
            sums = np.square(lost).sum(axis=0)
            is_better = sums < least
            chosen = start + np.flatnonzero(is_better)
            values[:, chosen], errors[:, chosen] = integers[:, is_better], lost[:, is_better]
            scales[chosen], least[is_better] = tried[is_better], sums[is_better]
    return values, scales, errors


def _walked(
    block: npt.NDArray[np.float32], factor: Array, scales: npt.NDArray[np.float16], bits: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(values, errors), both [B, out]: one input after another is rounded, and what it loses is mended.

    An error is (w − q) / Uᵢᵢ, as in the paper; with E of all inputs, W − Q = UᵀE.
    """
    rest, wide = block.copy(), scales.astype(np.float32)
    values, errors = np.empty(block.shape, np.int8), np.empty_like(block)
    for i, row in enumerate(rest):
        values[i] = blocks.nearest(row, scales, bits)
        errors[i] = (row - values[i] * wide) / factor[i, i]
        rest[i + 1 :] -= factor[i, i + 1 :, None] * errors[i]
    return values, errors
