"""What TensorRT refuses late or, worse, reads without a word as something else: found in the graph before a build.

Each rule was seen in a parser (facts and versions: docs/notes.md). ONNX Runtime honours all of these, so a check there
passes and the engine is wrong.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from pipeline.types import UserError

MAX_OPSET = 24
_PAST_INPUTS = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}
_IGNORED = {"softcap": 0.0, "softmax_precision": None, "left_window_size": -1, "right_window_size": -1}


def lint(model: ir.Model) -> list[str]:
    """One line for each node that TensorRT would refuse or misread; empty where the graph is fine."""
    ShapeInferencePass()(model)  # types of inner values; the weights stay external
    found = []
    opset = model.graph.opset_imports.get("", 0)
    if opset > MAX_OPSET:
        found.append(f"the graph has opset {opset}; TensorRT 11 parses up to {MAX_OPSET}")
    for node in model.graph:
        problem = _domain(node) or {"Attention": _attention, "TensorScatter": _scatter}.get(node.op_type, lambda _: None)(node)
        if problem:
            found.append(f"node {node.name!r} ({node.op_type}): {problem}")
    return found


def require(model: ir.Model, path: Path) -> None:
    """Raises a UserError with the first findings, where there are any."""
    if found := lint(model):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{path} would not be what TensorRT runs: {found[0]}{more}; export it with `pipeline export`")


def _domain(node: ir.Node) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"operator of the domain {node.domain}, for which TensorRT needs a plugin"
    return None


def _attention(node: ir.Node) -> str | None:
    if _number(node, "is_causal"):
        return (
            "is_causal is read as aligned to the upper left, which is wrong as soon as there is a cache; use an explicit mask"
        )
    for index, name in _PAST_INPUTS.items():
        if index < len(node.inputs) and node.inputs[index] is not None:
            return f"the input {name} is " + ("ignored without a word" if index == 6 else "refused by the parser")
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "more than one output is refused by the parser"
    for name, harmless in _IGNORED.items():
        if name in node.attributes and _number(node, name) != harmless:
            return f"the attribute {name} is refused or ignored"
    return _attention_types(node)


def _attention_types(node: ir.Node) -> str | None:
    query, mask = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
    if query is None:
        return "no query"
    if mask is not None and None not in (mask.dtype, query.dtype) and mask.dtype not in (ir.DataType.BOOL, query.dtype):
        return f"the mask is {mask.dtype}, which is neither BOOL nor the type of the query ({query.dtype})"
    dim = query.shape[3] if query.shape is not None and len(query.shape) == 4 else None
    if isinstance(dim, int) and not 8 < dim <= 256:
        return f"head dimension {dim}: there are kernels for 9 to 256"
    return None


def _scatter(node: ir.Node) -> str | None:
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "linear":
        return f"mode {mode.as_string()!r} is refused by the parser"
    return None


def _number(node: ir.Node, name: str) -> float | int | None:
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None else None
