"""A weight in blocks: small integers and, for every block of inputs of every output, one scale.

Legend: B block size. A weight is [in, out], as MatMul takes it; a block is B inputs of one output. This is
what ONNX's DequantizeLinear (opset 21) says with `axis=0` and `block_size=B`: weight = values · scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.quantisation.names import BLOCK_SIZES
from pipeline.store import processes
from pipeline.types import UserError

Array = npt.NDArray[Any]
CLIPS = {4: np.linspace(1.0, 0.65, 15), 8: np.linspace(1.0, 0.95, 11)}
"""Bits → of a block's largest scale, the shares that are tried. Below them nothing is won on SmolLM2."""
LEAST_SCALE = np.float16(2.0**-24)
"""The smallest float16 above 0, which a block of zeros has, too: nothing is divided by 0."""
_PIECE = 1 << 18
"""Numbers of a weight that are rounded at a time: what is computed from them stays in a processor's cache."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantised weight.

    Attributes:
        values: [in, out] int8; of 4 bits they lie in −8 … 7, of 8 bits in −128 … 127.
        scales: [in / B, out] float16; those of 4 bits may be negative (see `candidates`).
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]

    @property
    def block_size(self) -> int:
        """B."""
        return len(self.values) // len(self.scales)


def limits(bits: int) -> tuple[int, int]:
    """(lowest, highest) integer.

    The lowest is used although −lowest is not there: whatever the scale, one more level can only lessen the
    error. Of the int4 weights of SmolLM2 in blocks of 64, |W − Q|² / |W|² is 0.0115 in −7 … 7, 0.0101 in
    −8 … 7, and 0.0090 where the level more lies on the side of the block's largest weight.
    """
    return -(1 << bits - 1), (1 << bits - 1) - 1


def rounded(weight: Array, bits: int, block_size: int) -> Blocks:
    """Rounds a weight to nearest, with the scale of each block that has the least squared error.

    It takes 50 ns a weight of 4 bits and processor; all processors take part.

    Args:
        weight: [in, out] fp32.
        bits: 4 or 8.
        block_size: B; it divides `in`.

    Raises:
        UserError: a weight is not finite, or too large for a scale in float16; B does not divide `in`.
    """
    rows, columns = weight.shape
    refuse_odd(weight, bits, block_size)
    values = np.empty((rows, columns), np.int8)
    scales = np.empty((rows // block_size, columns), np.float16)
    width = max(_PIECE // block_size, 1)

    def fill(place: tuple[int, int]) -> None:
        block, start = place
        inside, piece = slice(block * block_size, (block + 1) * block_size), slice(start, start + width)
        part = np.ascontiguousarray(weight[inside, piece], np.float32)
        scales[block, piece] = best_scales(part, bits)
        values[inside, piece] = nearest(part, scales[block, piece], bits)

    with ThreadPoolExecutor(len(processes.usable_processors())) as pool:  # NumPy lets others run meanwhile
        list(pool.map(fill, product(range(len(scales)), range(0, columns, width))))
    return Blocks(values, scales)


def refuse_odd(weight: Array, bits: int, block_size: int) -> None:
    """Refuses what cannot be said in blocks; arguments and errors as `rounded`."""
    rows, columns = weight.shape
    if rows % block_size:
        raise UserError(
            f"blocks of {block_size} do not divide a weight's {rows} inputs; take --block-size "
            f"{next((size for size in reversed(BLOCK_SIZES) if rows % size == 0), 'another')}"
        )
    top = float(np.maximum(weight.max(), -weight.min())) if weight.size else 0.0
    if not np.isfinite(top):
        raise UserError(f"a weight of {rows} by {columns} numbers holds NaN or infinity")
    if top / limits(bits)[1] > float(np.finfo(np.float16).max):
        raise UserError(f"a weight of {top:g} is too large: the scale of its block is beyond float16")


def best_scales(block: Array, bits: int, importance: Array | None = None) -> npt.NDArray[np.float16]:
    """[out]: of each output, the scale of one block by which rounding has the least squared error.

    Args:
        block: [B, out] fp32.
        bits: 4 or 8.
        importance: [B], what the squared error of each input counts; by default all count the same.
    """
    weights = None if importance is None else np.asarray(importance, np.float32)[:, None]
    best, least = np.empty(block.shape[1], np.float16), np.full(block.shape[1], np.inf, np.float32)
    for scales in candidates(block, bits):
        wide = scales.astype(np.float32)
        errors = _integers(block, wide, bits)
        errors *= wide
        errors -= block
        errors *= errors
        if weights is not None:
            errors *= weights
        sums = errors.sum(axis=0)  # not a product of matrices, whose last bits depend on how many columns
        is_better = sums < least
        best[is_better], least[is_better] = scales[is_better], sums[is_better]
    return best


def candidates(block: Array, bits: int) -> Iterator[npt.NDArray[np.float16]]:
    """[out], one after another: the scales of one block that are tried.

    The first lets the largest weight be the highest integer; the others clip it. Each is in float16, so that
    its error is that of the scale which is kept.

    Of 4 bits a scale is negative where the largest weight is positive, as in llama.cpp's Q4_0: so −8 is on
    its side. TensorRT takes that of int4, and refuses it of int8, where one level more is nothing.

    Args:
        block: [B, out] fp32.
        bits: 4 or 8.
    """
    highest, lowest = block.max(axis=0), block.min(axis=0)
    largest = np.maximum(highest, -lowest) / limits(bits)[1]
    signs = np.where((highest >= -lowest) & (bits == 4), np.float16(-1), np.float16(1))
    for clip in CLIPS[bits]:
        yield np.maximum((largest * np.float32(clip)).astype(np.float16), LEAST_SCALE) * signs


def nearest(weights: Array, scales: Array, bits: int) -> npt.NDArray[np.int8]:
    """The integers nearest to weights, ties to even.

    Args:
        weights: […, out] fp32.
        scales: [out] float16, none of them 0.
        bits: 4 or 8.
    """
    return _integers(weights, scales.astype(np.float32), bits).astype(np.int8)


def _integers(weights: Array, scales: Array, bits: int) -> npt.NDArray[np.float32]:
    integers: Array = weights / scales
    np.rint(integers, out=integers)
    return integers.clip(*limits(bits), out=integers)


def dequantised(blocks: Blocks) -> npt.NDArray[np.float32]:
    """[in, out] fp32: the weight that blocks say; each product is exact."""
    weight = blocks.values.astype(np.float32)
    by_block = weight.reshape(len(blocks.scales), blocks.block_size, -1)
    by_block *= blocks.scales[:, None].astype(np.float32)
    return weight


def packed(values: npt.NDArray[np.int8], bits: int) -> bytes:
    """The integers as ONNX keeps them: int8, or two int4 a byte, the first in its lower half.

    Args:
        values: [in, out], in row-major order in what is given.
        bits: 4 or 8.
    """
    if bits == 8:
        return values.tobytes()
    import ml_dtypes
    import onnx_ir as ir

    return ir.Tensor(values.astype(ml_dtypes.int4)).tobytes()


def unpacked(data: bytes, bits: int, shape: tuple[int, int]) -> npt.NDArray[np.int8]:
    """The integers [in, out] of what `packed` gave; for 8 bits a view of `data`.

    Args:
        data: the bytes.
        bits: 4 or 8.
        shape: (in, out).
    """
    numbers = np.frombuffer(data, np.uint8)
    if bits == 8:
        return numbers.view(np.int8).reshape(shape)
    import onnx_ir as ir

    return ir.PackedTensor(numbers, ir.DataType.INT4, shape=ir.Shape(shape)).numpy().astype(np.int8)
