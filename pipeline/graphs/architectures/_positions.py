"""What attention needs of positions, written as nodes once a graph: the mask and the rotary angles.

Legend: B batch, S new tokens, P cached tokens, T = P + S, D_rot rotated part of the head dimension.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graphs.architectures._builder import GraphBuilder
from pipeline.models.rope import Rope


def write_mask(graph: GraphBuilder, ids: ir.Value, padding: ir.Value, window: int | None) -> ir.Value:
    """The bool mask [B, 1, S, T]: (k ≤ q + P) ∧ (not padding ∨ k = q + P), and k > q + P - window.

    The diagonal keeps a padded row from being fully masked, which would be NaN on some runtimes.

    Args:
        graph: takes the nodes.
        ids: input_ids [B, S].
        padding: attention_mask [B, T].
        window: keys that a query sees, itself included; None is all of them.
    """
    op, scalar = graph.op, graph.scalar
    total = op("Squeeze", [op("Shape", [padding], start=1, end=2)])
    new = op("Squeeze", [op("Shape", [ids], start=1, end=2)])
    keys = op("Unsqueeze", [op("Range", [scalar(0), total, scalar(1)]), graph.ints(0, 1, 2)])
    queries = op("Range", [op("Sub", [total, new]), total, scalar(1)])
    queries = op("Unsqueeze", [queries, graph.ints(0, 1, 3)])
    kept = op("Unsqueeze", [op("Cast", [padding], to=ir.DataType.BOOL), graph.ints(1, 2)])
    kept = op("Or", [kept, op("Equal", [keys, queries])])
    mask = op("And", [op("LessOrEqual", [keys, queries]), kept])
    if window is not None:
        oldest = op("Sub", [queries, scalar(window)])
        mask = op("And", [mask, op("Greater", [keys, oldest])])
    return mask


def write_angles(graph: GraphBuilder, rope: Rope, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines [B, S, D_rot/2] of the angles at position_ids [B, S], computed in FP32."""
    op = graph.op
    frequencies = graph.constant(rope.frequencies.reshape(1, 1, -1), f"{rope.name}.frequencies")
    if rope.long_frequencies is not None:
        far = graph.constant(rope.long_frequencies.reshape(1, 1, -1), f"{rope.name}.long_frequencies")
        last = op("ReduceMax", [positions], keepdims=0)
        frequencies = op("Where", [op("GreaterOrEqual", [last, graph.scalar(rope.switch)]), far, frequencies])
    position = op("Unsqueeze", [op("Cast", [positions], to=ir.DataType.FLOAT), graph.ints(2)])
    angle = op("Mul", [position, frequencies])
    tables = [op(name, [angle]) for name in ("Cos", "Sin")]
    if rope.factor != 1.0:
        factor = graph.constant(np.float32(rope.factor), f"{rope.name}.factor")
        tables = [op("Mul", [table, factor]) for table in tables]
    if graph.dtype != ir.DataType.FLOAT:
        tables = [op("Cast", [table], to=graph.dtype) for table in tables]
    return tables[0], tables[1]
