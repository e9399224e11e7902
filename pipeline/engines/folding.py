"""Which graphs ONNX Runtime need not fold when it opens them."""

from __future__ import annotations

import onnx_ir as ir

LARGE = 100e6
"""Bytes of weights below which folding costs nothing that anyone would notice."""


def folds(model: ir.Model) -> bool:
    """Whether ONNX Runtime is to fold a graph's constants.

    Folding writes every weight anew, transposed: for 7B in fp32 a minute and a half, and in fp16 half as much
    memory again (docs/notes.md). Left alone, Transpose and MatMul become one FusedMatMul on the CPU and on
    CUDA, whose numbers are the same, bit by bit. But what else computes on weights alone, a Cast above all,
    would be computed anew in every step.

    Args:
        model: the graph, weights untouched.
    """
    stored = [value for value in model.graph.initializers.values() if _is_stored(value)]
    if sum(value.const_value.nbytes for value in stored if value.const_value is not None) < LARGE:
        return True
    readers = [use.node for value in stored for use in value.uses()]
    return any(_is_constant(node) and not _is_fused(node) for node in readers)


def _is_stored(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _is_constant(node: ir.Node) -> bool:
    """Whether a node reads constants and nothing else."""
    return all(
        value is None or value.is_initializer() or ((by := value.producer()) and by.op_type == "Constant")
        for value in node.inputs
    )


def _is_fused(node: ir.Node) -> bool:
    """Whether it is Wᵀ [in, out], and the right side of products alone."""
    perm = node.attributes.get("perm")
    if node.op_type != "Transpose" or perm is None or list(perm.as_ints()) != [1, 0]:
        return False
    out = node.outputs[0]
    products = all(use.node.op_type == "MatMul" and use.idx == 1 for use in out.uses())
    return products and not out.is_graph_output()
