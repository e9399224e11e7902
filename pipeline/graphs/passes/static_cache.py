"""Gives a graph's cache a fixed number of places, into which new keys and values are written.

Legend: B batch, S new tokens, P cached tokens, T = P + S, N places of the cache, G key/value heads, D head
dimension.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graphs import graphfile
from pipeline.types import UserError

OPSET = 24
"""The first that has TensorScatter."""
WRITE_INDICES = "write_indices"
"""The input that says how many tokens each row holds."""
_REFUSED = "this graph gets no static cache"


class StaticCachePass(InPlacePass):
    """Replaces `Concat(past, new)` by `TensorScatter(past, new, write_indices)` in every layer.

    A cache is [B, G, N, D] before and after, so that a runtime can write in place: past and present of a
    layer are one tensor there. `write_indices` [B] is the P of each row, and `attention_mask` is [B, N]. The
    mask hides what lies behind a row's tokens, whatever it is. All else stays.

    Args:
        max_tokens: N.

    Raises:
        UserError: the graph has no cache, or it is not of this project's form.
    """

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens

    def requires(self, model: ir.Model) -> None:
        """Every cache has its Concat, and the places of queries are counted as the contract does."""
        pasts = [value for value in model.graph.inputs if graphfile.is_cache(value)]
        if not pasts:
            raise UserError(f"the graph has no attention left and so no cache; {_REFUSED}")
        self.concats = [_concat(past, model.graph) for past in pasts]
        self.places = [node for node in model.graph if _counts_queries(node)]
        if not self.places:
            raise UserError(f"no node counts the places of queries from attention_mask; {_REFUSED}")

    def call(self, model: ir.Model) -> PassResult:
        """Writes the nodes in the places of the old ones."""
        graph = model.graph
        graph.opset_imports[""] = OPSET
        held = ir.Value(name=WRITE_INDICES, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
        graph.inputs.append(held)
        for concat in self.concats:
            _scatter(concat, held)
        for places in self.places:
            _count_from(places, held)
        for value in (*graph.inputs, *graph.outputs):
            if value.shape is not None and (axis := _token_axis(value)):
                sizes = list(value.shape)
                sizes[axis] = self.max_tokens
                value.shape = ir.Shape(sizes)
        RemoveUnusedNodesPass()(model)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Nothing appends to a cache any more."""
        appended = [node for node in model.graph if node.op_type == "Concat" and _reads_cache(node)]
        if appended:
            raise UserError(f"node {appended[0].name!r} still appends to a cache; {_REFUSED}")


def _token_axis(value: ir.Value) -> int | None:
    """Which axis of an input or output has T or P sizes; None where none has."""
    name = value.name or ""
    if name.startswith((graphfile.CACHE_INPUT, "present.")):
        return 2
    return 1 if name == "attention_mask" else None


def _reads_cache(node: ir.Node) -> bool:
    return any(value is not None and graphfile.is_cache(value) for value in node.inputs)


def _concat(past: ir.Value, graph: ir.Graph) -> ir.Node:
    """The node that appends new keys or values to a cache, and gives the cache afterwards."""
    readers = [use.node for use in past.uses()]
    if len(readers) != 1 or readers[0].op_type != "Concat" or readers[0].outputs[0] not in graph.outputs:
        raise UserError(f"{past.name} is not just read by a Concat that gives its present; {_REFUSED}")
    return readers[0]


def _counts_queries(node: ir.Node) -> bool:
    """Whether a node is Range(T - S, T), the places of the new tokens, T from attention_mask."""
    start = node.inputs[0].producer() if node.op_type == "Range" and node.inputs[0] is not None else None
    return start is not None and start.op_type == "Sub" and start.inputs[0] is node.inputs[1]


def _scatter(concat: ir.Node, held: ir.Value) -> None:
    """Writes where a Concat appends."""
    graph, present = concat.graph, concat.outputs[0]
    assert isinstance(graph, ir.Graph), "the contract has no functions"
    node = ir.node("TensorScatter", [*concat.inputs, held], {"axis": 2, "mode": "linear"}, name=concat.name)
    (written,) = node.outputs
    written.name, written.type, written.shape = present.name, present.type, present.shape
    graph.insert_before(concat, node)
    present.replace_all_uses_with(written, replace_graph_outputs=True)
    graph.remove(concat, safe=True)


def _count_from(places: ir.Node, held: ir.Value) -> None:
    """Makes [1, 1, S, 1], the places of queries after P, [B, 1, S, 1]: after the P of each row."""
    graph, start = places.graph, places.inputs[0]
    difference = start.producer() if start is not None else None
    assert isinstance(graph, ir.Graph) and difference is not None, "`_counts_queries` has seen it"
    places.replace_input_with(0, _constant(graph, "int.0", np.array(0)))
    places.replace_input_with(1, difference.inputs[1])
    (use,) = places.outputs[0].uses()
    queries = use.node  # Unsqueeze
    axes = _constant(graph, "ints.1_2_3", np.array([1, 2, 3]))
    rows = ir.node("Unsqueeze", [held, axes], name=f"{queries.name}/rows")
    counted = ir.node("Add", [queries.outputs[0], rows.outputs[0]], name=f"{queries.name}/places")
    for node in (rows, counted):
        node.outputs[0].name = f"{node.name}:0"
    queries.outputs[0].replace_all_uses_with(counted.outputs[0])
    counted.replace_input_with(0, queries.outputs[0])
    graph.insert_after(queries, [rows, counted])


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.int64]) -> ir.Value:
    """A small int64 tensor of the graph, under the name that GraphBuilder gives it."""
    if name not in graph.initializers:
        tensor = ir.tensor(array.astype(np.int64), name=name)
        form = ir.TensorType(tensor.dtype)
        graph.register_initializer(
            ir.Value(name=name, const_value=tensor, type=form, shape=ir.Shape(array.shape))
        )
    return graph.initializers[name]
