"""A graph in memory whose inner values are outputs too: the residual stream at every join.

Legend: T tokens, L layers, C hidden size, M = L + 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pipeline import store
from pipeline.calib.streams import Streams
from pipeline.graphs import anatomy, graphfile
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.types import BASE, UserError


def tapped(path: Path, model: ir.Model, values: Iterable[ir.Value]) -> OnnxRunner:
    """The graph of `path`, loaded as `model`, in ONNX Runtime with these values among its outputs. The file stays as it is."""
    for value in dict.fromkeys(values):
        if value not in model.graph.outputs:
            model.graph.outputs.append(value)
    return OnnxRunner(path, open_session(ir.to_proto(model).SerializeToString(), path.parent))


def stream_before(first: anatomy.Join) -> ir.Value:
    """The residual stream that the first sublayer joins."""
    add = anatomy.join_node(first.branch)
    if add.outputs[0] is first.stream:
        return anatomy.other_operand(add, first.branch)
    return anatomy.other_operand(anatomy.join_node(add.outputs[0]), add.outputs[0])


def graph_streams(path: Path) -> Streams:
    """The residual stream of a base graph, for `calibrate`.

    Raises:
        UserError: the graph is of a variant, or adds attention and MLP up before they join the stream.
    """
    record = store.read_sidecar(path)
    if store.variant_of(record).skip:
        raise UserError(f"{path} leaves sublayers out; similarity is measured on a base graph")
    model = graphfile.load(path)
    layers = int(record["num_layers"])
    joins = {join.sublayer: join for join in anatomy.find(model, layers, BASE)}
    outer = (joins[layer, kind].stream for layer in range(layers) for kind in ("attn", "mlp"))
    values = [stream_before(joins[0, "attn"]), *outer]
    if len({id(value) for value in values}) != len(values):
        raise UserError(f"{path} adds attention and MLP up before they join the stream; take --runner torch")
    runner = tapped(path, model, values)
    names = [value.name or "" for value in values]

    def streams(row: Any) -> tuple[Any, Any]:
        ids = np.asarray(row, np.int64)[None]
        outputs = runner.infer(runner.feeds(ids), names)
        stages = [outputs[name].reshape(ids.shape[1], -1) for name in names]
        return np.stack([stages[0], *stages[2::2]]), np.stack(stages[1::2])

    return streams
