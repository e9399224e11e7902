"""The residual stream of a sequence, from PyTorch or from a graph whose joins are exposed.

Legend: T tokens, L layers, C hidden size, M = L + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pipeline import anatomy, graphfile, store
from pipeline.types import BASE, UserError

Streams = Callable[[Any], tuple[Any, Any]]
"""[T] token ids → (streams [M, T, C], middles [L, T, C])."""


def torch_streams(folder: Path) -> Streams:
    """From transformers, in fp32."""
    from pipeline.reference import Reference

    reference = Reference(folder)

    def streams(row: Any) -> tuple[Any, Any]:
        ids = np.asarray(row, np.int64)[None]
        ones, positions = np.ones_like(ids), np.arange(ids.shape[1])[None]
        after, _, before = reference.trace(ids, ones, positions)
        layers = len(reference.layers)
        outer = np.stack([before[0], *(after[layer, "mlp"][0] for layer in range(layers))])
        return outer, np.stack([after[layer, "attn"][0] for layer in range(layers)])

    return streams


def graph_streams(path: Path) -> Streams:
    """From a base graph: the joins' values become outputs of a copy in memory.

    Raises:
        UserError: the graph is of a variant, or adds attention and MLP up before they join the stream.
    """
    from pipeline.backends.onnxruntime import OnnxRunner, open_session

    record = store.read_sidecar(path)
    if store.variant_of(record).skip:
        raise UserError(f"{path} leaves sublayers out; similarity is measured on a base graph")
    model = graphfile.load(path)
    layers = int(record["num_layers"])
    joins = {join.sublayer: join for join in anatomy.find(model, layers, BASE)}
    first = joins[0, "attn"]
    values = [_before(first), *(joins[layer, kind].stream for layer in range(layers) for kind in ("attn", "mlp"))]
    if len({id(value) for value in values}) != len(values):
        raise UserError(f"{path} adds attention and MLP up before they join the stream; take --runner torch")
    for value in values:
        if value not in model.graph.outputs:
            model.graph.outputs.append(value)
    names = [value.name or "" for value in values]
    runner = OnnxRunner(path, open_session(ir.to_proto(model).SerializeToString(), path.parent))

    def streams(row: Any) -> tuple[Any, Any]:
        ids = np.asarray(row, np.int64)[None]
        found = runner.infer(runner.feeds(ids), names)
        held = [found[name].reshape(ids.shape[1], -1) for name in names]
        return np.stack([held[0], *held[2::2]]), np.stack(held[1::2])

    return streams


def _before(first: anatomy.Join) -> ir.Value:
    """The stream that the first sublayer joins."""
    return anatomy.other_operand(anatomy.join_node(first.branch), first.branch)
