"""A graph and just the weights that it uses, in a folder of their own: `model.onnx` and `model.data`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from pipeline import store
from pipeline.graphs import graphfile
from pipeline.types import UserError

DATA = "model.data"
CHUNK = 8 << 20
ALIGNMENT = 4096
"""Bytes: ONNX Runtime maps external data where it begins on a page."""


class _DataFile:
    """model.data while it is written: each range of bytes once, aligned, with a digest of all of it."""

    def __init__(self, out: BinaryIO) -> None:
        self.out, self.digest = out, hashlib.sha256()
        self.offsets: dict[tuple[Path, int, int], int] = {}

    def add(self, file: Path, offset: int, length: int) -> int:
        """Copies a range of bytes out of a file; returns where it begins in model.data."""
        key = file, offset, length
        if key not in self.offsets:
            self._write(bytes(-self.out.tell() % ALIGNMENT))
            self.offsets[key] = self.out.tell()
            self._copy(file, offset, length)
        return self.offsets[key]

    def _copy(self, file: Path, offset: int, length: int) -> None:
        with file.open("rb") as source:
            source.seek(offset)
            while length:
                chunk = source.read(min(CHUNK, length))
                if not chunk:
                    raise UserError(f"{file} ends before its tensors do; restore it")
                self._write(chunk)
                length -= len(chunk)

    def _write(self, data: bytes) -> None:
        self.out.write(data)
        self.digest.update(data)


def repack(graph: Path, folder: Path) -> None:
    """Writes `model.onnx` and `model.data`: byte ranges of the checkpoint, each once, in the graph's order.

    Raises:
        UserError: a file of weights is cut, or what was written reads back differently.
    """
    model = graphfile.load(graph)
    folder.mkdir(parents=True)
    with (folder / DATA).open("wb") as out:
        data = _DataFile(out)
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            length = tensor.length or 0
            offset = data.add(graph.parent / str(tensor.location), tensor.offset or 0, length)
            value.const_value = ir.ExternalTensor(
                DATA, offset, length, tensor.dtype, shape=tensor.shape, name=name, base_dir=folder
            )
        out.flush()
        os.fsync(out.fileno())
    if store.sha256(folder / DATA) != data.digest.hexdigest():
        raise UserError(f"{folder / DATA} does not read back as it was written; the disk is failing")
    (folder / "model.onnx").write_bytes(ir.to_proto(model).SerializeToString())
