"""Where each sublayer joins the residual stream of an ONNX graph, by structure and not by names.

A sublayer is a branch f(norm(x)) that an `Add` brings back to the stream x. Two facts distinguish a branch
from any other operand of an `Add`: it descends from the stream, and it does so through a product with a
weight. (`Add(x, 0.0447·x³)` of a GELU descends too, but through no weight.) A branch with a softmax or an
`Attention` operator is attention, any other an MLP. This holds for graphs authored here, for those that
optimum traces (where a norm is six nodes), and for parallel layers, whose branches read the same stream or
are summed before they join it.

A map that stands in for a skipped sublayer joins the stream as well, and is no sublayer: it is known by the
names of its initializers (`models/compensation.py`). Its bias alone may be all that joins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from pipeline.models import compensation
from pipeline.models.compensation import MapPlace
from pipeline.types import SkipSet, Sublayer, UserError

PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "MatMulNBits"}
_SOFTMAX = {"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"}
_SAME_STREAM = {"Reshape", "Identity", "Cast"}  # OPT flattens its stream around the MLP
_REFUSED = "this graph is not cut"


@dataclass(frozen=True)
class Join:
    """One sublayer of a graph.

    Attributes:
        layer: index in the original model.
        kind: 'attn' or 'mlp'.
        branch: the value that the sublayer adds to the stream, [B, S, C].
        stream: the residual stream after it (after both branches, where a layer sums them first).
    """

    layer: int
    kind: Literal["attn", "mlp"]
    branch: ir.Value
    stream: ir.Value

    @property
    def sublayer(self) -> Sublayer:
        """(layer, kind)."""
        return (self.layer, self.kind)


@dataclass(frozen=True)
class MapJoin:
    """What stands in for a skipped sublayer of a graph, or for a run of whole layers.

    Attributes:
        place: where it stands.
        branch: the value that it adds to the stream: [B, S, C], or a bias alone, [C].
        stream: the residual stream after it, as a Join's.
    """

    place: MapPlace
    branch: ir.Value
    stream: ir.Value


def find(model: ir.Model, num_layers: int, skip: SkipSet) -> list[Join]:
    """As `stages`, the sublayers alone."""
    return [stage for stage in stages(model, num_layers, skip) if isinstance(stage, Join)]


def stages(model: ir.Model, num_layers: int, skip: SkipSet) -> list[Join | MapJoin]:
    """The joins of a decoder graph, and the maps that stand in for others, in the order of the stream.

    Args:
        model: the graph, whole or with the sublayers of `skip` left out already.
        num_layers: L of the original model.
        skip: what is left out; the remaining joins keep their original layer indices.

    Raises:
        UserError: the joins are not just the expected ones; names the layer and the node.
    """
    expected = [sublayer for sublayer in _sublayers(num_layers) if sublayer not in skip]
    joins: list[Join] = []
    found: list[Join | MapJoin] = []
    for branch, kind, stream in _Scan(model).joins():
        if isinstance(kind, MapPlace):
            found.append(MapJoin(kind, branch, stream))
            continue
        if len(joins) == len(expected):
            raise UserError(
                f"node {_node_name(branch)} joins the residual stream beyond the {num_layers} layers; "
                f"{_REFUSED}"
            )
        layer, wanted = expected[len(joins)]
        if kind != wanted:
            raise UserError(
                f"layer {layer}: node {_node_name(branch)} joins the stream as {kind}, expected {wanted}; "
                f"{_REFUSED}"
            )
        joins.append(Join(layer, kind, branch, stream))
        found.append(joins[-1])
    if len(joins) < len(expected):
        layer, kind = expected[len(joins)]
        last = _node_name(joins[-1].branch) if joins else "none"
        raise UserError(
            f"layer {layer}: no {kind} joins the residual stream (the last that does: {last}); {_REFUSED}"
        )
    return found


def _sublayers(num_layers: int) -> Iterator[Sublayer]:
    """Every sublayer of the original model, in the order of the stream."""
    for layer in range(num_layers):
        yield layer, "attn"
        yield layer, "mlp"


def join_node(branch: ir.Value) -> ir.Node:
    """The `Add` that brings a branch to the stream: the branch's only reader."""
    readers = [use.node for use in branch.uses()]
    if len(readers) != 1 or readers[0].op_type != "Add":
        raise UserError(
            f"node {_node_name(branch)} has {len(readers)} readers where one residual Add was expected; "
            f"{_REFUSED}"
        )
    return readers[0]


def other_operand(add: ir.Node, branch: ir.Value) -> ir.Value:
    """What an `Add` adds the branch to: what remains when the branch is left out."""
    first, second = add.inputs
    rest = second if first is branch else first
    if rest is None:
        raise UserError(f"node {add.name!r} is an Add of one operand; the graph is malformed")
    return rest


def stream_before(first: Join | MapJoin) -> ir.Value:
    """The residual stream that a sublayer or a map joins; of branches that are summed, both join the same."""
    add = join_node(first.branch)
    if add.outputs[0] is first.stream:
        return other_operand(add, first.branch)
    return other_operand(join_node(add.outputs[0]), add.outputs[0])


def _node_name(value: ir.Value) -> str:
    producer = value.producer()
    return repr(producer.name if producer else value.name)


_Kind = Literal["attn", "mlp"] | MapPlace
_Branch = tuple[ir.Value, _Kind]


class _Scan:
    """One walk over the nodes in order, following the stream from join to join."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.constants = constants(model)
        self.maps = _map_parts(model)
        self.streams: set[ir.Value] = set()  # the stream after each join so far, and before the first
        self.current: ir.Value | None = None

    def joins(self) -> list[tuple[ir.Value, _Kind, ir.Value]]:
        """(branch, kind, stream after it), in order; attention before an MLP that it is summed with."""
        joins: list[tuple[ir.Value, _Kind, ir.Value]] = []
        for add in self.graph:
            if add.op_type != "Add" or any(v is None for v in add.inputs):
                continue
            for stream in add.inputs:
                if stream is None or stream in self.constants:
                    continue
                if branches := self._branches(_origin(stream), other_operand(add, stream)):
                    after = add.outputs[0]
                    self.streams |= {_origin(stream), after}
                    self.current = after
                    joins += [(branch, kind, after) for branch, kind in sorted(branches, key=_order)]
                    break
        return joins

    def _branches(self, stream: ir.Value, operand: ir.Value) -> list[_Branch]:
        """The branches that an `Add` brings to the stream: none where it is no join, two if summed first."""
        if self.current is not None and stream is not self.current:
            return []
        is_first = self.current is None and operand in self.constants
        if is_first and self._kind(stream, set(self.graph.inputs)) is not None:
            return []  # a bias that is summed with the branch of a parallel layer first
        streams, inner = self.streams | {stream}, operand.producer()
        if inner is not None and inner.op_type == "Add" and len(inner.inputs) == 2:
            parts = [(value, self._kind(value, streams)) for value in inner.inputs if value is not None]
            if len({part_kind for _, part_kind in parts if part_kind is not None}) == 2:
                return [(value, part_kind) for value, part_kind in parts if part_kind]
        kind = self._kind(operand, streams)
        return [(operand, kind)] if kind else []

    def _kind(self, value: ir.Value, streams: set[ir.Value]) -> _Kind | None:
        """What lies between the stream and a value, walking back: a sublayer, a map, or None of both."""
        if value in self.constants:
            return self.maps.get(value)
        place: MapPlace | None = None
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
            through_weight |= node.op_type in PRODUCTS and any(v in self.constants for v in node.inputs)
            place = place or next((self.maps[v] for v in node.inputs if v in self.maps), None)
            fresh = {v for v in node.inputs if v is not None and v not in self.constants} - seen
            seen |= fresh
            open_values.extend(fresh)
        if not (from_stream and through_weight):
            return None
        return place or ("attn" if through_softmax else "mlp")


def _order(branch: _Branch) -> str:
    kind = branch[1]
    return kind.kind if isinstance(kind, MapPlace) else kind


def constants(model: ir.Model) -> set[ir.Value]:
    """Values that depend on no graph input: weights, and what casts, transposes or dequantises them."""
    constants = set(model.graph.initializers.values()) - set(model.graph.inputs)
    for node in model.graph:
        if all(v is None or v in constants for v in node.inputs):
            constants.update(node.outputs)
    return constants


def _map_parts(model: ir.Model) -> dict[ir.Value | None, MapPlace]:
    """The weights by which a map is known, its matrices, or its bias where it has none; and their casts."""
    parts: dict[bool, dict[ir.Value, MapPlace]] = {True: {}, False: {}}
    for name, value in model.graph.initializers.items():
        if place := compensation.place_of(name):
            parts[name.endswith(".bias")][value] = place
    matrices, biases = parts[False], parts[True]
    telling = matrices | {value: place for value, place in biases.items() if place not in matrices.values()}
    known: dict[ir.Value | None, MapPlace] = {}
    for value, place in telling.items():
        casts = (use.node for use in value.uses() if use.node.op_type == "Cast")
        known.update(dict.fromkeys((value, *(node.outputs[0] for node in casts)), place))
    return known


def _origin(value: ir.Value) -> ir.Value:
    """The stream behind reshapes and casts."""
    node = value.producer()
    while node is not None and node.op_type in _SAME_STREAM and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
