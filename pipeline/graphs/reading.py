"""What a sublayer of an ONNX graph reads: the output of the norm before it, found by structure.

Whatever the norm is made of, the sublayer's first products with a weight all read its output (the queries,
keys and values of an attention, the gate and the up projection of an MLP), and no such product lies between
the stream and them.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from pipeline.graphs.anatomy import PRODUCTS, Join
from pipeline.types import UserError

_SIZES = {"Shape", "Size"}
"""Operators whose output has nothing of the numbers that they read."""


def sublayer_input(
    model: ir.Model, join: Join, streams: Collection[ir.Value], constants: Collection[ir.Value]
) -> ir.Value:
    """The value h [B, S, C] that a sublayer reads: its norm's output, or the stream where there is no norm.

    Args:
        model: the graph.
        join: of the sublayer.
        streams: the residual stream before the first join and after each.
        constants: values that depend on no input of the graph.

    Raises:
        UserError: the sublayer's first products read several values.
    """
    cone = _cone(join.branch, streams)
    direct, weighted = set(streams), set[ir.Value]()
    found: dict[ir.Value, str] = {}
    for node in model.graph:
        if node not in cone or node.op_type in _SIZES:
            continue
        read = [value for value in node.inputs if value is not None and value not in constants]
        is_product = node.op_type in PRODUCTS and len(read) < len(node.inputs)
        if any(value in weighted for value in read):
            weighted.update(node.outputs)
        elif any(value in direct for value in read):
            if is_product:
                found.setdefault(read[0], str(node.name))
            (weighted if is_product else direct).update(node.outputs)
    if len(found) != 1:
        seen = f"its first products read {len(found)} values ({', '.join(list(found.values())[:3])})"
        raise UserError(
            f"layer {join.layer} {join.kind}: {seen} where one was expected, so no map can stand in for it; "
            "take --with bias"
        )
    return next(iter(found))


def _cone(value: ir.Value, streams: Collection[ir.Value]) -> set[ir.Node]:
    """The nodes between the stream and a value."""
    nodes: set[ir.Node] = set()
    open_values = [value]
    while open_values:
        here = open_values.pop()
        node = here.producer()
        if here in streams or node is None or node in nodes:
            continue
        nodes.add(node)
        open_values.extend(one for one in node.inputs if one is not None)
    return nodes
