"""Where each sublayer joins the residual stream of an ONNX graph, found by structure and not by names.

A sublayer is a branch f(norm(x)) that an `Add` brings back to the stream x. A branch is told from any other operand
of an `Add` by two facts: it descends from the stream, and on the way it went through a product with a weight.
(`Add(x, 0.0447·x³)` of a GELU descends too, but through no weight.) It is an attention when it holds a softmax, an
`Attention` operator or a cache; else an MLP. This finds the graphs authored here, those that optimum traces (where a
norm is six nodes), and parallel layers, where both branches read the same stream or are summed before they join it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from pipeline.types import SkipSet, Sublayer, UserError

_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "MatMulNBits"}
_SOFTMAX = {"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"}
_SAME_STREAM = {"Reshape", "Identity", "Cast"}  # OPT flattens its stream around the MLP


@dataclass(frozen=True)
class Join:
    """One sublayer of a graph.

    Attributes:
        layer: index in the original model.
        kind: 'attn' or 'mlp'.
        branch: the value that the sublayer adds to the stream, [B, S, C].
        stream: the residual stream once it is added (and, where a layer sums its branches first, the other one too).
    """

    layer: int
    kind: Literal["attn", "mlp"]
    branch: ir.Value
    stream: ir.Value

    @property
    def sublayer(self) -> Sublayer:
        return (self.layer, self.kind)


def find(model: ir.Model, num_layers: int, skip: SkipSet) -> list[Join]:
    """The joins of a decoder graph, in the order of the stream.

    Args:
        model: the graph, whole or with the sublayers of `skip` left out already.
        num_layers: L of the original model.
        skip: what is left out; the remaining joins keep their original layer indices.

    Raises:
        UserError: the joins are not just the expected ones; names the layer and the node.
    """
    expected: list[Sublayer] = [
        s for i in range(num_layers) for s in ((i, "attn"), (i, "mlp")) if s not in skip
    ]  # type: ignore[misc]
    joins: list[Join] = []
    for branch, kind, stream in _Scan(model).joins():
        if len(joins) == len(expected):
            raise UserError(
                f"node {_node_name(branch)} joins the residual stream beyond the {num_layers} layers; this graph is not cut"
            )
        layer, wanted = expected[len(joins)]
        if kind != wanted:
            raise UserError(
                f"layer {layer}: node {_node_name(branch)} joins the stream as {kind}, expected {wanted}; this graph is not cut"
            )
        joins.append(Join(layer, kind, branch, stream))
    if len(joins) < len(expected):
        layer, kind = expected[len(joins)]
        last = _node_name(joins[-1].branch) if joins else "none"
        raise UserError(
            f"layer {layer}: no {kind} joins the residual stream (the last that does: {last}); this graph is not cut"
        )
    return joins


def join_node(branch: ir.Value) -> ir.Node:
    """The `Add` that brings a branch to the stream: the branch's only reader."""
    readers = [use.node for use in branch.uses()]
    if len(readers) != 1 or readers[0].op_type != "Add":
        raise UserError(
            f"node {_node_name(branch)} has {len(readers)} readers where one residual Add was expected; this graph is not cut"
        )
    return readers[0]


def other_operand(add: ir.Node, branch: ir.Value) -> ir.Value:
    """What an `Add` adds the branch to: what remains when the branch is left out."""
    first, second = add.inputs
    rest = second if first is branch else first
    if rest is None:
        raise UserError(f"node {add.name!r} is an Add of one operand; the graph is malformed")
    return rest


def _node_name(value: ir.Value) -> str:
    producer = value.producer()
    return repr(producer.name if producer else value.name)


_Branch = tuple[ir.Value, Literal["attn", "mlp"]]


class _Scan:
    """One walk over the nodes in order, following the stream from join to join."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.constants = _constants(model)
        self.streams: set[ir.Value] = set()  # every stage of the stream so far
        self.current: ir.Value | None = None

    def joins(self) -> list[tuple[ir.Value, Literal["attn", "mlp"], ir.Value]]:
        """(branch, kind, stream after it) in order; attention first where a layer sums its branches before the join."""
        found = []
        for add in self.graph:
            if add.op_type != "Add" or any(v is None or v in self.constants for v in add.inputs):
                continue
            for stream in add.inputs:
                if stream is not None and (
                    branches := self._branches(_origin(stream), other_operand(add, stream))
                ):
                    self.streams |= {_origin(stream), add.outputs[0]}
                    self.current = add.outputs[0]
                    found += [
                        (branch, kind, self.current) for branch, kind in sorted(branches, key=lambda b: b[1])
                    ]
                    break
        return found

    def _branches(self, stream: ir.Value, operand: ir.Value) -> list[_Branch]:
        """The branches that an `Add` of `operand` brings to `stream`: none where it is no join, two where they are summed first."""
        if self.current is not None and stream is not self.current:
            return []
        streams = self.streams | {stream}
        if (kind := self._kind(operand, streams)) is None:
            return []
        inner = operand.producer()
        if inner is not None and inner.op_type == "Add" and len(inner.inputs) == 2:
            parts = [(value, self._kind(value, streams)) for value in inner.inputs if value is not None]
            if {part_kind for _, part_kind in parts} == {"attn", "mlp"}:
                return [(value, part_kind) for value, part_kind in parts if part_kind]
        return [(operand, kind)]

    def _kind(self, value: ir.Value, streams: set[ir.Value]) -> Literal["attn", "mlp"] | None:
        """Walks back from a value to the stream: which kind of sublayer lies between, None where none does."""
        from_stream = through_weight = through_softmax = False
        open_values, seen = [value], {value}
        while open_values:
            here = open_values.pop()
            if here in streams:
                from_stream = True
                continue
            node = here.producer()
            if node is None:
                continue
            through_softmax |= node.op_type in _SOFTMAX
            through_weight |= node.op_type in _PRODUCTS and any(v in self.constants for v in node.inputs)
            fresh = {v for v in node.inputs if v is not None and v not in self.constants} - seen
            seen |= fresh
            open_values.extend(fresh)
        if not (from_stream and through_weight):
            return None
        return "attn" if through_softmax else "mlp"


def _constants(model: ir.Model) -> set[ir.Value]:
    """Values that depend on no graph input: weights, and what casts, transposes or dequantises them."""
    constants = set(model.graph.initializers.values()) - set(model.graph.inputs)
    for node in model.graph:
        if all(v is None or v in constants for v in node.inputs):
            constants.update(node.outputs)
    return constants


def _origin(value: ir.Value) -> ir.Value:
    """The stream behind reshapes and casts."""
    node = value.producer()
    while node is not None and node.op_type in _SAME_STREAM and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
