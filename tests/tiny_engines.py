"""Helpers of the tests that build engines in the project of the current directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from pipeline import store
from pipeline.graphs import graphfile, variants
from pipeline.runtime import tensorrt_library
from pipeline.types import Precision, SkipSet

HERE = tensorrt_library.gpu_target()


def graph(name: str = "base", precision: Precision = "fp16") -> Path:
    return variants.cut(Path(f"graphs/tiny/base.{precision}.onnx"), SkipSet.parse(name))


def leftovers() -> list[str]:
    """Everything under engines/ that is no log and no lock."""
    return sorted(
        p.name
        for p in Path("engines").rglob("*")
        if p.is_file() and p.suffix != ".log" and p.suffix != ".lock"
    )


def spoil(path: Path, op_type: str, change: Callable[[ir.Node], None]) -> None:
    """Changes every node of a type in a graph, sidecar kept right."""
    record = store.graph_sidecar(path)
    model = graphfile.load(path)
    for node in model.graph:
        if node.op_type == op_type:
            change(node)
    graphfile.save(model, path, record.plain())
