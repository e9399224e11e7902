"""The numbers of a GGUF's tensors, in the narrowest type that loses nothing.

What is stored as float16 or bfloat16 stays so. float32 becomes float16 or bfloat16 where that holds every
number exactly, as in files that were made from 16-bit checkpoints. Quantised tensors become float16, whose
rounding is a small part of a quantisation step, unless their numbers lie beyond its normal range: then they
stay float32.
"""

from __future__ import annotations

from typing import Any

import gguf as library
import ml_dtypes
import numpy as np
import numpy.typing as npt

from pipeline.models.gguf.header import GgufTensor
from pipeline.types import UserError, first_line

Array = npt.NDArray[Any]
Kind = library.GGMLQuantizationType
FLOATS: dict[Kind, Any] = {
    Kind.F16: np.float16, Kind.BF16: ml_dtypes.bfloat16, Kind.F32: np.float32, Kind.F64: np.float64,
}  # fmt: skip
"""How numbers are stored that are not quantised → their type."""
_LEAST, _MOST = 2.0**-14, 65504.0
"""The smallest and the largest normal number of float16."""


def values(tensor: GgufTensor) -> Array:
    """The numbers of a tensor, in the narrowest type that keeps what the file says.

    Raises:
        UserError: its type cannot be read, or one of them is none.
    """
    kind = FLOATS.get(tensor.kind)
    if kind is not None:
        array: Array = tensor.stored().view(kind)
    else:
        try:
            array = library.dequantize(tensor.stored(), tensor.kind)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"{tensor.file}: {tensor.name} is of type {tensor.kind.name}, which cannot be read "
                f"({first_line(error)})"
            ) from None
    array = array.reshape(tensor.shape)
    top = largest(array)
    if not np.isfinite(top):
        raise UserError(f"{tensor.file}: {tensor.name} holds NaN or infinity")
    return narrowed(array, top, is_quantised=kind is None)


def largest(array: Array) -> float:
    """max|x|, NaN where one is; no copy is made of what may be an embedding of a gigabyte."""
    return float(np.maximum(array.max(), -array.min()))


def narrowed(array: Array, top: float, is_quantised: bool) -> Array:
    """In 16 bits, where that says the same.

    Args:
        array: of floating-point numbers.
        top: `largest` of it.
        is_quantised: its numbers were rounded to fewer bits than 16.

    Raises:
        UserError: a number is beyond float32.
    """
    if array.dtype.itemsize == 2:
        return array
    if is_quantised and _LEAST <= top <= _MOST:
        return array.astype(np.float16)
    with np.errstate(over="ignore"):
        for narrow in (np.float16, ml_dtypes.bfloat16, np.float32):
            candidate: Array = array.astype(narrow)
            if narrow is np.float32 or np.array_equal(candidate.astype(array.dtype), array):
                break
    if not np.all(np.isfinite(candidate)):
        raise UserError(f"a weight of {top:g} is beyond float32")
    return candidate
