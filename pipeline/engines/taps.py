"""A graph in memory with inner values among its outputs: the residual stream at every join.

Legend: T tokens, L layers, C hidden size, M = L + 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pipeline import store
from pipeline.calib.streams import Streams
from pipeline.engines import opening
from pipeline.graphs import anatomy, graphfile
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.runtime.runner import Array
from pipeline.types import BASE, Provider, UserError


def tapped(
    path: Path,
    model: ir.Model,
    values: Iterable[ir.Value],
    provider: Provider = "cpu",
    exact: bool = False,
) -> OnnxRunner:
    """A graph in ONNX Runtime with inner values among its outputs; the file is not changed.

    Args:
        path: the graph.
        model: the same, loaded.
        values: of `model`, to be outputs.
        provider: of ONNX Runtime.
        exact: as `onnxruntime.open_session`.

    Raises:
        UserError: its weights are more than --device-memory gives.
    """
    for value in dict.fromkeys(values):
        if value not in model.graph.outputs:
            model.graph.outputs.append(value)
    opening.require_room([path], provider)
    proto = ir.to_proto(model).SerializeToString()
    return OnnxRunner(path, open_session(proto, path.parent, provider=provider, exact=exact))


def graph_streams(path: Path, provider: Provider = "cpu") -> Streams:
    """The residual stream of a base graph, for `calibrate`.

    Args:
        path: the graph.
        provider: of ONNX Runtime.

    Raises:
        UserError: the graph is of a variant, or adds attention and MLP up before they join the stream.
    """
    record = store.graph_sidecar(path)
    if record.skip_set:
        raise UserError(f"{path} leaves sublayers out; similarity is measured on a base graph")
    model = graphfile.load(path)
    joins = anatomy.find(model, record.num_layers, BASE)
    values = [anatomy.stream_before(joins[0]), *(join.stream for join in joins)]
    if len({id(value) for value in values}) != len(values):
        raise UserError(f"{path} adds attention and MLP up before they join the stream; take --runner torch")
    runner = tapped(path, model, values, provider)
    names = [value.name or "" for value in values]

    def streams(row: Array) -> tuple[Array, Array]:
        ids = np.asarray(row, np.int64)[None]
        outputs = runner.infer(runner.feeds(ids), names)
        stages = [outputs[name].reshape(ids.shape[1], -1) for name in names]
        return np.stack([stages[0], *stages[2::2]]), np.stack(stages[1::2])

    return streams
