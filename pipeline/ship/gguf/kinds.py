"""Types of a GGUF file: which are written here, and in what each tensor's numbers are kept.

What gguf-py quantises is offered. Its K-quants cannot be made: `llama-quantize` makes them of a float16 file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf as library
import numpy as np
import numpy.typing as npt

from pipeline.models.gguf.stored import FLOATS
from pipeline.types import UserError

Array = npt.NDArray[Any]
Kind = library.GGMLQuantizationType
SOURCE = "source"
TYPES: dict[str, Kind] = {
    "f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0, "q5_1": Kind.Q5_1,
    "q5_0": Kind.Q5_0, "q4_1": Kind.Q4_1, "q4_0": Kind.Q4_0,
}  # fmt: skip
"""Name on the command line → how matrices are stored."""
_LARGEST = 65504.0
"""Of float16, in which the scales of quantised blocks are kept too."""
_CHUNK = 1 << 22
"""Numbers that are converted at a time."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What `--type` asks for.

    Attributes:
        name: in lower case, as llama.cpp has it; or 'source'.
        blocks: likewise, the type of those weights that the graph reads in blocks, which keep them whatever
            `--type` says; None where it reads none so.
    """

    name: str
    blocks: str | None = None

    @property
    def main(self) -> str:
        """The type of most of the file."""
        return self.blocks or self.name

    @property
    def is_source(self) -> bool:
        """Whether tensors are copied from the user's own GGUF."""
        return self.name == SOURCE

    @property
    def matrices(self) -> Kind:
        """How matrices are stored; of 'source' those that the GGUF has not."""
        return TYPES.get(self.name, Kind.F16)

    @property
    def is_quantised(self) -> bool:
        """Whether matrices are kept in blocks."""
        return self.matrices not in FLOATS

    @property
    def file_type(self) -> int:
        """The number of `general.file_type`, of any but 'source' without blocks."""
        name = "ALL_F32" if self.main == "f32" else f"MOSTLY_{self.main.upper()}"
        return int(library.LlamaFileType[name])

    def of(self, shape: tuple[int, ...], is_output: bool = False) -> Kind:
        """How a tensor is stored.

        Norms and biases are float32, as llama.cpp's converter has them. A row that is no whole number of
        blocks is float16. The matrix that gives the logits has 8 bits at least, where `llama-quantize`
        has 6.

        Args:
            shape: rows first.
            is_output: it gives the logits.
        """
        if len(shape) == 1:
            return Kind.F32
        kind = Kind.Q8_0 if is_output and self.is_quantised else self.matrices
        return Kind.F16 if shape[-1] % library.GGML_QUANT_SIZES[kind][0] else kind


def known() -> set[str]:
    """llama.cpp's names of types, in lower case."""
    return {one.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower() for one in library.LlamaFileType}


def type_name(fields: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of a file's type, in lower case; None where its fields name none."""
    for one in library.LlamaFileType:
        if one == fields.get("general.file_type"):
            return one.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    return None


def size(shape: tuple[int, ...], kind: Kind) -> int:
    """Bytes of a tensor."""
    block, width = library.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * width


def converted(name: str, array: Array, kind: Kind, offset: float = 0.0) -> Iterator[bytes]:
    """A tensor's bytes, some rows at a time.

    Args:
        name: of the tensor, for messages.
        array: rows first; float32, float16 or bfloat16.
        kind: how it is stored.
        offset: what is added to each number, in float32.

    Raises:
        UserError: a number is beyond what the type can hold.
    """
    row = array[0].size
    step = max(1, _CHUNK // row)
    for start in range(0, len(array), step):
        rows = array[start : start + step]
        if offset:
            rows = rows.astype(np.float32) + np.float32(offset)
        yield _stored(name, rows, kind).tobytes()


def _stored(name: str, rows: Array, kind: Kind) -> Array:
    wanted = FLOATS.get(kind)
    if wanted is not None and rows.dtype == wanted:
        return np.ascontiguousarray(rows)
    values = np.ascontiguousarray(rows, np.float32)
    if kind not in (Kind.F32, Kind.BF16) and not np.abs(values).max() <= _LARGEST:
        raise UserError(
            f"{name} holds {np.abs(values).max():g}, which is beyond float16 ({_LARGEST:g}); "
            "ship with --type bf16"
        )
    if wanted is not None:
        return values.astype(wanted)
    quantised: Array = library.quantize(values, kind)
    return quantised
