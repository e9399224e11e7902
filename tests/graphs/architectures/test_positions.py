"""The mask and the angles, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pipeline.graphs.architectures._builder import INT64, GraphBuilder
from pipeline.graphs.architectures._positions import write_angles, write_mask
from pipeline.models import checkpoint
from pipeline.models.rope import Rope
from pipeline.types import Precision
from tests import tiny


def builder(workdir: Path, precision: Precision = "fp32") -> GraphBuilder:
    return GraphBuilder(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))), precision)


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("window", [None, 3])
def test_mask_is_causal_without_padding_and_keeps_the_diagonal(window: int | None, workdir: Path) -> None:
    graph = builder(workdir)
    ids = graph.input("ids", INT64, ["batch", "sequence"])
    padding = graph.input("padding", INT64, ["batch", "total"])
    mask = write_mask(graph, ids, padding, window)
    mask.type, mask.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape(["batch", 1, "sequence", "total"])
    kept = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    (result,) = run(graph.finish([mask]), ids=np.zeros((2, 4), np.int64), padding=kept)
    for row in range(2):
        for query in range(4):
            for key in range(6):
                at = query + 2  # P = 2
                sees = key <= at and (kept[row, key] == 1 or key == at)
                sees = sees and (window is None or key > at - window)
                assert result[row, 0, query, key] == sees


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-6), ("fp16", 1e-3)])
def test_angles_are_positions_times_frequencies(precision: Precision, limit: float, workdir: Path) -> None:
    graph = builder(workdir, precision)
    positions = graph.input("positions", INT64, ["batch", "sequence"])
    rope = Rope(np.array([1.0, 0.25], np.float32), factor=1.5)
    tables = write_angles(graph, rope, positions)
    for name, table in zip(("cos", "sin"), tables, strict=True):
        graph.output(table, name, ["batch", "sequence", 2])
    at = np.array([[0, 3, 7], [1, 1, 200]])
    cosines, sines = run(graph.finish(tables), positions=at)
    angles = at[:, :, None] * rope.frequencies
    np.testing.assert_allclose(cosines, 1.5 * np.cos(angles), atol=limit)
    np.testing.assert_allclose(sines, 1.5 * np.sin(angles), atol=limit)
