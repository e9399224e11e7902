"""The bytes of a GGUF file: header, keys, and one tensor after another, never two of them in memory."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np

from pipeline import store
from pipeline.models import provenance
from pipeline.models.gguf import header, names, parts
from pipeline.models.gguf.header import GgufHeader
from pipeline.ship.gguf.entries import FileTensor
from pipeline.types import UserError, first_line

_ALIGN = library.GGUF_DEFAULT_ALIGNMENT
QUANTISATION = library.GGML_QUANT_VERSION
VARIANT, NUM_LAYERS, LAYERS, FORM, DIGEST = (
    f"{provenance.NAME}.{key}"
    for key in (
        provenance.VARIANT, provenance.NUM_LAYERS, provenance.LAYERS, provenance.FORM, provenance.DIGEST
    )
)  # fmt: skip
"""Keys that say what a file is; llama.cpp passes over them."""
Fields = Mapping[str, Any]
logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every file and its byte order


def refuse_name(file: Path) -> None:
    """Refuses a name by which llama.cpp finds no file, or looks for others beside it.

    Raises:
        UserError: with the reason.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; name the file in it, {file / 'model.gguf'} say")
    if file.suffix != ".gguf":
        raise UserError(f"{file} does not end in .gguf, by which llama.cpp's tools know a model")
    if names.model_name(file) != file.stem:
        raise UserError(f"{file} is the name of one of several files of a model; choose another")


def is_there(file: Path, digest: str, keys: Fields, tensors: Sequence[FileTensor]) -> bool:
    """Whether the file is there and is what would be written, byte for byte of its tensors.

    Args:
        file: OUT.gguf.
        digest: of what it would be made of.
        keys: that say what it computes.
        tensors: that it would have.

    Raises:
        UserError: it is something else, or was changed since it was written.
    """
    if not file.exists() and not file.is_symlink():
        return False
    try:
        present = header.read(file)
    except UserError:
        present = GgufHeader(file, {}, ())
    fields = present.fields
    if fields.get(DIGEST) == digest:
        if changed := [key for key, value in keys.items() if not _is_same(fields.get(key), value)]:
            raise UserError(f"{file}: {changed[0]} was changed since it was written; remove the file")
        if tensor := _changed_tensor(present, tensors):
            raise UserError(f"{file}: {tensor} was changed since it was written; remove the file")
        return True
    other = fields.get(VARIANT) or fields.get("general.name")
    what = f"another file, of {other!r:.60}" if other else "something else"
    raise UserError(f"{file} exists and is {what}; remove it or choose another name")


def _changed_tensor(present: GgufHeader, tensors: Sequence[FileTensor]) -> str | None:
    """The first tensor of a file that is not the one that would be written."""
    stored = {tensor.name: tensor for tensor in present.tensors}
    with present.file.open("rb") as opened:
        for tensor in tensors:
            there = stored.get(tensor.name)
            if there is None or (there.shape, there.kind, there.size) != (
                tensor.shape, tensor.kind, tensor.size
            ):  # fmt: skip
                return tensor.name
            opened.seek(there.start)
            if not all(opened.read(len(chunk)) == bytes(chunk) for chunk in tensor.chunks()):
                return tensor.name
    return None


def _is_same(stored: Any, value: Any) -> bool:
    """Whether a key of a file has a value, of which the file holds float32."""
    return bool(stored == (float(np.float32(value)) if isinstance(value, float) else value))


@contextlib.contextmanager
def beside(file: Path) -> Iterator[Path]:
    """A temporary name beside the file, which is renamed to it on success; else nothing is left.

    One process at a time writes a file; what a killed one left of it is removed.

    Raises:
        UserError: the disk is full, or nothing can be written there.
    """
    try:
        with store.lock(file, make=False):  # it removes the folders that it made, where they stay empty
            store.remove_unfinished(file)
            with store.atomic(file) as temporary:
                yield temporary
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or first_line(error)}") from None


def read_back(file: Path, tensors: Sequence[FileTensor]) -> GgufHeader:
    """The header of a file that was just written, which must have these tensors."""
    written = parts.read(file)
    there = [(one.name, one.shape, one.kind, one.size) for one in written.tensors]
    assert there == [(one.name, one.shape, one.kind, one.size) for one in tensors], (
        f"{file} has other tensors"
    )
    return written


def padded(size: int) -> int:
    """Bytes that a tensor of this size takes."""
    return -(-size // _ALIGN) * _ALIGN


def refuse_no_room(file: Path, tensors: Sequence[FileTensor]) -> None:
    """Refuses a file for which its disk has no room.

    Raises:
        UserError: with what it needs, and what there is.
    """
    folder = next(place for place in file.absolute().parents if place.exists())
    needed, free = sum(padded(tensor.size) for tensor in tensors), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{file} needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} are free there; choose another "
            "folder, or a smaller --type"
        )


def write(file: Path, arch: str, fields: Fields, tensors: Sequence[FileTensor]) -> None:
    """Writes a file; it is not synced, and not renamed.

    Args:
        file: that is there, and empty.
        arch: the architecture.
        fields: key → value: an int is a uint32, a float a float32, a list of ints int32.
        tensors: in the order of the file.

    Raises:
        OSError: the disk is full, say.
        UserError: a number is beyond what a type can hold.
    """
    writer = library.GGUFWriter(file, arch)
    for key, value in fields.items():
        _add(writer, key, value)
    for tensor in tensors:
        # the type of the array is not looked at where the stored type is given
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, tensor.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    with file.open("ab") as out:
        out.write(bytes(-out.tell() % _ALIGN))
        for tensor in tensors:
            size = sum(out.write(chunk) for chunk in tensor.chunks())
            assert size == tensor.size, f"{tensor.name} has {size} bytes, not {tensor.size}"
            out.write(bytes(-size % _ALIGN))


def _add(writer: library.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int) and value >= 0:
        add = writer.add_uint32 if value < 2**32 else writer.add_uint64
        add(key, value)
    elif isinstance(value, int):
        writer.add_int32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
