"""Folders as `optimum-cli export onnx` leaves them, made of graphs that were authored here."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir


def as_optimum_exports(source: Path, graph: Path, folder: Path) -> Path:
    """A folder with model.onnx, external data under optimum's name, config and tokenizer."""
    folder.mkdir(parents=True)
    model = ir.load(graph)
    model.metadata_props.clear()
    for key, value in model.graph.initializers.items():
        old = value.const_value
        if isinstance(old, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                "model.onnx_data", old.offset, old.length, old.dtype, shape=old.shape, name=key
            )
    (folder / "model.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    shutil.copy(source / "model.safetensors", folder / "model.onnx_data")
    for file in source.glob("*.json"):
        shutil.copy(file, folder / file.name)
    return folder
