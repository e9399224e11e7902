"""How many tokens a graph's embedding knows: an id beyond its rows is no input; a backend may not say so."""

from __future__ import annotations

import onnx_ir as ir

_SAME_ROWS = {"Cast", "Identity", "DequantizeLinear"}


def rows(model: ir.Model) -> int | None:
    """Rows of the table in which the graph looks up `input_ids`.

    Args:
        model: a decoder graph, from here or traced elsewhere.

    Returns:
        None where it looks them up in no `Gather` of a weight; the width of its logits is what is left then.
    """
    ids = next((value for value in model.graph.inputs if value.name == "input_ids"), None)
    waiting, tables = [ids] if ids is not None else [], list[int]()
    while waiting:
        for node, place in waiting.pop().uses():
            if node.op_type in _SAME_ROWS:
                waiting += node.outputs
            elif node.op_type == "Gather" and place == 1 and node.attributes.get_int("axis", 0) == 0:
                size = _first_dimension(node.inputs[0])
                tables += [] if size is None else [size]
    return min(tables, default=None)


def _first_dimension(value: ir.Value | None) -> int | None:
    """The first dimension of a weight, through what leaves its rows where they are."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type not in _SAME_ROWS:
            return None
        value = node.inputs[0]
    size = value.shape[0] if value is not None and value.shape else None
    return size if isinstance(size, int) else None
