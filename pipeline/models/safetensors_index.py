"""Where every tensor of a safetensors checkpoint lies, from the files' headers alone: no weight is read.

The library `safetensors` hands out tensors, not byte ranges, and an ONNX graph needs the ranges. A header
comes from
outside: it is believed only where its offsets, its shapes and the file's size agree.
Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pipeline.store import records
from pipeline.types import TensorSlice, UserError

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
"""Bytes of a number, by type."""
INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
MAX_HEADER = 100_000_000
"""Bytes of a header at most: the limit of the safetensors library itself."""
CONVERSION = (
    "from transformers import AutoModelForCausalLM as M; M.from_pretrained('FOLDER').save_pretrained('OUT')"
)


class ShardIndex(records.Record):
    """model.safetensors.index.json: the file that holds each tensor."""

    weight_map: dict[str, str] = {}  # noqa: RUF012 - pydantic copies a field's default


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, else model.safetensors.

    Raises:
        UserError: a named file is missing or leaves the folder, or there are only pickled weights, or none.
    """
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(records.read(ShardIndex, index).weight_map.values()))
        for name in names:
            if Path(name).name != name:
                raise UserError(f"{index} names {name!r}, outside its folder; refused")
            if not (folder / name).is_file():
                raise UserError(f"{index} names {name}, which is missing; download the checkpoint again")
        if names:
            return [folder / name for name in names]
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise UserError(
            f"{folder} holds only pickled weights, which are code and are not opened here; "
            f'convert them with `python -c "{CONVERSION}"`'
        )
    raise UserError(f"{folder} holds no {ONE_FILE} and no {INDEX}")


def read_index(files: list[Path]) -> dict[str, TensorSlice]:
    """Tensor name → its byte range, over all shards.

    Raises:
        UserError: a file is truncated, a header contradicts its file, or two shards hold the same tensor.
    """
    tensors: dict[str, TensorSlice] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in tensors:
                raise UserError(f"{file} and {tensors[name].file} both hold the tensor {name!r}")
            tensors[name] = tensor
    return tensors


def header_bytes(file: Path) -> bytes:
    """The 8 length bytes and the JSON header of one file.

    Raises:
        UserError: the file is too short to be a safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
            raise UserError(
                f"{file} is truncated or no safetensors file: header of {length} bytes in a file of {size}; "
                "fetch it again"
            )
        return prefix + stream.read(length)


def _read_header(file: Path) -> dict[str, TensorSlice]:
    raw = header_bytes(file)
    try:
        header = json.loads(raw[8:])
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
    shape = tuple(int(size) for size in entry["shape"])
    dtype = entry["dtype"]
    if dtype not in ITEM_SIZES:
        raise UserError(f"{file}: tensor {name!r} has the type {dtype}, which is not read here")
    if begin < 0 or min(shape, default=0) < 0 or end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
        raise UserError(
            f"{file}: tensor {name!r}: offsets {begin}-{end} do not hold {dtype} {list(shape)}: "
            "the header lies"
        )
    return TensorSlice(file.name, data_start + begin, end - begin, dtype, shape)
