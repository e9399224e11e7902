"""A graph and just the weights that it uses, copied into a folder of their own: `model.onnx` and `model.data`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import onnx_ir as ir

from pipeline import store
from pipeline.graphs import graphfile
from pipeline.types import UserError

DATA = "model.data"
CHUNK = 8 << 20
ALIGNMENT = 4096
"""Bytes: ONNX Runtime maps external data where it begins on a page."""


def repack(graph: Path, folder: Path) -> None:
    """Writes `model.onnx` and `model.data`: byte ranges streamed out of the checkpoint, each once, in the graph's order.

    Raises:
        UserError: the weights are not what the checkpoint's source.json says, or what was written reads back differently.
    """
    model = graphfile.load(graph)
    folder.mkdir(parents=True)
    _verify_sources(graph.parent)
    moved: dict[tuple[str, int, int], int] = {}
    digest = hashlib.sha256()
    with (folder / DATA).open("wb") as out:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            source = (str(tensor.location), tensor.offset or 0, tensor.length or 0)
            if source not in moved:
                gap = bytes(-out.tell() % ALIGNMENT)
                out.write(gap)
                digest.update(gap)
                moved[source] = out.tell()
                _stream(graph.parent / source[0], source[1], source[2], out, digest)
            value.const_value = ir.ExternalTensor(
                DATA, moved[source], source[2], tensor.dtype, shape=tensor.shape, name=name, base_dir=folder
            )
        out.flush()
        os.fsync(out.fileno())
    if store.sha256(folder / DATA) != digest.hexdigest():
        raise UserError(f"{folder / DATA} does not read back as it was written; the disk is failing")
    (folder / "model.onnx").write_bytes(ir.to_proto(model).SerializeToString())


def _stream(file: Path, offset: int, length: int, out: object, digest: object) -> None:
    with file.open("rb") as source:
        source.seek(offset)
        while length:
            chunk = source.read(min(CHUNK, length))
            if not chunk:
                raise UserError(f"{file} ends before its tensors do; restore it")
            out.write(chunk)  # type: ignore[attr-defined]
            digest.update(chunk)  # type: ignore[attr-defined]
            length -= len(chunk)


def _verify_sources(folder: Path) -> None:
    """Compares the checkpoint's files with the SHA-256 that the hub or `export --verify` gave, where one is known."""
    path = folder / store.SOURCE
    source = store.read_json(path) if path.is_file() else {}
    known = {**source.get("etags", {}), **source.get("sha256", {})}
    for name, digest in known.items():
        file = folder / name
        if (
            name.endswith(".safetensors")
            and len(digest) == 64
            and file.is_file()
            and store.sha256(file) != digest
        ):
            raise UserError(f"{file} is not what was fetched (SHA-256 differs); remove it and export again")
