"""Where every tensor of a safetensors checkpoint lies, from the files' headers alone: no weight is read.

The library `safetensors` hands out tensors, not byte ranges, and an ONNX graph needs the ranges. A header
comes from outside: it is believed only where its offsets, its shapes and the file's size agree.
Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.models.tensor_names import is_table
from pipeline.store import records
from pipeline.types import TensorSlice, UserError, first_line, shown

if TYPE_CHECKING:
    import torch

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
"""Bytes of a number, by type."""
MAX_HEADER = 10_000_000
"""Bytes of a header at most. (A hostile one of 100 MB takes gigabytes.)"""
MAX_TENSORS = 50_000
"""Tensors of a checkpoint at most; Llama 3.1 405B has 1,138."""
MAX_RANK = 8
_CHUNK = 1 << 20


def read_index(files: Iterable[Path], named: frozenset[str] | None = None) -> dict[str, TensorSlice]:
    """Tensor name → its byte range, over all shards.

    Args:
        files: safetensors of one folder.
        named: the tensors that the shards' index names. transformers passes over those that it does not name,
            and leaves empty those that it names and no shard holds.

    Raises:
        UserError: a file is truncated, a header contradicts its file or the index, or two shards hold
            different tensors of one name.
    """
    tensors: dict[str, TensorSlice] = {}
    places: dict[str, Path] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in tensors and not _is_same(tensors[name], places[name], tensor, file):
                raise UserError(
                    f"{file} and {tensors[name].file} both hold the tensor {name!r}, and differ; "
                    "remove the wrong one"
                )
            tensors.setdefault(name, tensor)
            places.setdefault(name, file)
        if len(tensors) > MAX_TENSORS:
            raise UserError(f"{file.parent} holds more than {MAX_TENSORS} tensors, as no model here does")
    if named is not None:
        _refuse_other_names(next(iter(places.values())).parent, tensors, named)
    return tensors


@contextlib.contextmanager
def opened(file: Path, framework: Literal["pt", "np"] = "pt") -> Iterator[Any]:
    """The safetensors library's own handle on a file, once its header is known to be true.

    Args:
        file: safetensors.
        framework: whose tensors it gives, PyTorch's or NumPy's.

    Raises:
        UserError: as `read_index`; or the library does not read a tensor of it.
    """
    from safetensors import SafetensorError, safe_open

    read_index([file])
    try:
        with safe_open(file, framework) as tensors:
            yield tensors
    except (SafetensorError, AttributeError) as error:  # it looks up NumPy's types by their names
        raise UserError(f"{file} cannot be read ({first_line(error)})") from None


def load(file: Path, framework: Literal["pt", "np"] = "pt") -> dict[str, Any]:
    """All tensors of a file, by name; arguments and errors as `opened`."""
    with opened(file, framework) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping


def numbers(file: Path, tensor: TensorSlice) -> npt.NDArray[Any]:
    """A tensor's numbers in the type of the file, read from the disk when they are used.

    Args:
        file: safetensors.
        tensor: where it lies there; of floating-point numbers of 16 or 32 bits.
    """
    kind: Any = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[tensor.dtype]
    return np.memmap(file, kind, "r", tensor.offset, tensor.shape)


def torch_dtype(tensor: TensorSlice) -> torch.dtype | None:
    """PyTorch's type of a tensor of floating-point numbers; None of any other."""
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(tensor.dtype)


def _refuse_other_names(folder: Path, tensors: dict[str, TensorSlice], named: frozenset[str]) -> None:
    """Refuses shards whose tensors are not those that their index names."""
    if absent := [name for name in sorted(named - set(tensors)) if not is_table(name)]:
        raise UserError(f"{folder}: the index names {shown(absent)}, which no shard holds; fetch it again")
    if extra := [name for name in sorted(set(tensors) - named) if not is_table(name)]:
        raise UserError(
            f"{folder}: its shards hold {shown(extra)}, which the index does not name, so that transformers "
            "passes over it; save the model again, or mend the index"
        )


def _is_same(one: TensorSlice, file: Path, other: TensorSlice, other_file: Path) -> bool:
    """Whether two tensors agree byte for byte."""
    if (one.dtype, one.shape, one.nbytes) != (other.dtype, other.shape, other.nbytes):
        return False
    return same_bytes(file, one, other_file, other)


def same_bytes(file: Path, one: TensorSlice, other_file: Path, other: TensorSlice) -> bool:
    """Whether two byte ranges of one length hold the same."""
    with file.open("rb") as left, other_file.open("rb") as right:
        left.seek(one.offset)
        right.seek(other.offset)
        for begin in range(0, one.nbytes, _CHUNK):
            size = min(_CHUNK, one.nbytes - begin)
            if left.read(size) != right.read(size):
                return False
    return True


def _header_bytes(file: Path) -> bytes:
    """The 8 length bytes and the JSON header of one file.

    Raises:
        UserError: the file is too short to be a safetensors file, or its header too long for one of a model.
    """
    with records.open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if MAX_HEADER < length <= size - 8:
            raise UserError(
                f"{file}: its header has {length} bytes; {MAX_HEADER} is the most that is read here"
            )
        stream.seek(0)
        return store.weights.header_bytes(stream, file, size)


def _read_header(file: Path) -> dict[str, TensorSlice]:
    raw = _header_bytes(file)
    try:
        header = json.loads(raw[8:].decode(), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("no JSON object")
        if len(header) > MAX_TENSORS:
            raise UserError(f"{file} holds more than {MAX_TENSORS} tensors, as no model here does")
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _slice(file, name, entry, len(raw)) for name, entry in entries.items()}
    except UserError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file}: the safetensors header is malformed ({error}); fetch the file again"
        ) from None
    _refuse_gaps(file, tensors, len(raw))
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. json keeps the last of two equal keys, and the safetensors library refuses them."""
    whole = dict(pairs)
    if len(whole) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r:.100} stands there twice")
    return whole


def _refuse_gaps(file: Path, tensors: dict[str, TensorSlice], data_start: int) -> None:
    """Refuses a header whose tensors do not fill the file, one behind the other."""
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            raise UserError(
                f"{file}: tensor {name!r} lies at byte {tensor.offset}, expected {end}: "
                "the header lies about its offsets"
            )
        end += tensor.nbytes
    if end != (size := file.stat().st_size):
        raise UserError(
            f"{file} is truncated: its header promises {end} bytes, the file has {size}; fetch it again"
        )


def _slice(file: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorSlice:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if dtype not in ITEM_SIZES:
        raise UserError(f"{file}: tensor {name!r:.200} has the type {dtype:.40}, which is not read here")
    if len(shape) > MAX_RANK or not all(type(number) is int for number in (begin, end, *shape)):
        raise ValueError(f"shape or offsets of {name!r:.100}")
    if begin < 0 or min(shape, default=0) < 0 or end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
        raise UserError(
            f"{file}: tensor {name!r:.200}: offsets {begin}-{end} do not hold {dtype} {list(shape)}: "
            "the header lies"
        )
    return TensorSlice(file.name, data_start + begin, end - begin, dtype, shape)
