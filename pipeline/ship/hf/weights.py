"""Writes safetensors from byte ranges of other files, none of which is held in memory.

The library `safetensors` writes from tensors in memory alone. Where the file system can (btrfs, xfs),
copy_file_range shares extents instead of copying.
Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from pipeline import store
from pipeline.models import checkpoint_files, safetensors_index, weight_files
from pipeline.models.safetensors_index import ITEM_SIZES
from pipeline.ship.hf.parts import Shard, WrittenTensor, file_names
from pipeline.ship.pruned import StoredTensor
from pipeline.types import UserError

_CHUNK = 1 << 24
_NO_RANGES = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
"""Of file systems that do not copy ranges, or not from one to the other."""


def write(shards: Sequence[Shard], folder: Path) -> None:
    """Writes the files, and where there are several their index.

    Raises:
        OSError: the disk is full, say.
        UserError: a file of the source is shorter than its header says.
    """
    names = file_names(shards)
    for name, shard in names.items():
        if shard.whole:
            checkpoint_files.copy_file(shard.whole, folder / name)
        else:
            _write_shard(shard.parts, folder / name)
    if len(names) > 1:
        weight_map = {part.name: name for name, shard in names.items() for part in shard.parts}
        total = sum(shard.nbytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        store.write_json(folder / weight_files.INDEX, index)


def altered(shards: Sequence[Shard], folder: Path) -> str | None:
    """The first tensor of a folder that is not what would be written, byte for byte; None where all are.

    Raises:
        UserError: a file is missing, or cut short.
    """
    files = weight_files.find(folder)
    there = safetensors_index.read_index(files.files, files.named)
    parts = [part for shard in shards for part in shard.parts]
    if extra := set(there) - {part.name for part in parts}:
        return min(extra)
    for part in parts:
        one = there.get(part.name)
        if one is None or (one.dtype, one.shape) != (part.dtype, part.tensor.shape):
            return part.name
        file, tensor = folder / one.file, part.tensor
        if isinstance(tensor, StoredTensor):
            is_same = safetensors_index.same_bytes(file, one, tensor.file, tensor.slice)
        else:
            is_same = StoredTensor(file, one).array().tobytes() == tensor.array().tobytes()
        if not is_same:
            return part.name
    return None


def require_room(shards: Sequence[Shard], place: Path) -> None:
    """Refuses what the disk has no room for; files that share the source's extents need none.

    Args:
        shards: the files.
        place: a folder on the disk.

    Raises:
        UserError: how much there is.
    """
    needed = sum(shard.nbytes for shard in shards if not shard.whole)
    copied = [shard.whole for shard in shards if shard.whole]
    if copied and not checkpoint_files.shares_extents(copied[0], place):
        needed += sum(file.stat().st_size for file in copied)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"the folder needs {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free in {place}; free some "
            "space, or name a folder on a larger disk"
        )


def _write_shard(parts: Sequence[WrittenTensor], path: Path) -> None:
    """One file: wide numbers first, so that each tensor begins at a multiple of its numbers' size."""
    ordered = sorted(parts, key=lambda part: -ITEM_SIZES[part.dtype])
    with store.atomic(path) as temporary, temporary.open("wb") as file:
        file.write(_header(ordered))
        for part in ordered:
            if isinstance(part.tensor, StoredTensor):
                _copy_range(part.tensor, file)
            else:
                file.write(part.tensor.array().tobytes())


def _header(parts: Sequence[WrittenTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        begin, end = end, end + part.nbytes
        entries[part.name] = {
            "dtype": part.dtype, "shape": list(part.tensor.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copy_range(tensor: StoredTensor, file: IO[bytes]) -> None:
    """Appends one tensor's bytes."""
    file.flush()
    begin, left = tensor.slice.offset, tensor.slice.nbytes
    with tensor.file.open("rb") as source:
        while left:
            count = _copy_some(source.fileno(), file.fileno(), begin, left)
            if not count:
                raise UserError(f"{tensor.file} was cut short while it was read; run the command again")
            begin, left = begin + count, left - count
    file.seek(0, os.SEEK_END)


def _copy_some(source: int, target: int, begin: int, left: int) -> int:
    """Copies bytes to where the target stands; how many."""
    try:
        return os.copy_file_range(source, target, min(left, 1 << 30), offset_src=begin)
    except OSError as error:
        if error.errno not in _NO_RANGES:
            raise
    data = os.pread(source, min(left, _CHUNK), begin)
    return os.write(target, data)
