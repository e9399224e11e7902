"""What TensorRT refuses late or, worse, silently misreads: recognised in the graph before a build.

Each rule was seen in a parser or builder (TensorRT-RTX 1.7.1; TensorRT 11 shares the parser). ONNX Runtime
honours most of these, so a check there passes and the engine is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from pipeline.graphs import graphfile
from pipeline.types import UserError

MAX_OPSET = 24
HEAD_DIMS = (12, 256)
"""Smallest and largest head dimension with a fused attention kernel (10 and 320 failed to build)."""
_PAST_INPUTS = {
    4: "past_key is refused by the parser",
    5: "past_value is refused by the parser",
    6: "nonpad_kv_seqlen is ignored without a word",
}
_ATTRIBUTES = {
    "softcap": (0.0, "refused by the parser"),
    "softmax_precision": (None, "refused by the parser"),
    "left_window_size": (-1, "ignored without a word"),
    "right_window_size": (-1, "ignored without a word"),
}


def lint(model: ir.Model, decomposed: bool = False) -> list[str]:
    """One line for each node that TensorRT would refuse or misread; none where the graph is fine.

    Args:
        model: the graph; the types of its inner values are inferred.
        decomposed: attention will be taken apart, so that its head dimension needs no kernel.
    """
    ShapeInferencePass()(model)  # the weights stay external
    problems = []
    opset = model.graph.opset_imports.get("", 0)
    if opset > MAX_OPSET:
        problems.append(f"the graph has opset {opset}; TensorRT 11 parses up to {MAX_OPSET}")
    for node in _nodes(model):
        problem = _domain(node, model)
        if problem is None and node.op_type == "Attention":
            problem = _attention(node) or _attention_types(node) or (None if decomposed else _head_dim(node))
        if problem is None and node.op_type == "TensorScatter":
            problem = _scatter(node, model)
        if problem:
            problems.append(f"node {node.name!r} ({node.op_type}): {problem}")
    return problems + [problem for problem in (_two_forms(model),) if problem]


def require(model: ir.Model, path: Path, decomposed: bool = False) -> None:
    """Refuses a graph that TensorRT would refuse or misread.

    Args:
        model: the graph.
        path: its file, for the message.
        decomposed: as `lint` takes it.

    Raises:
        UserError: names the first problem and counts the others.
    """
    if problems := lint(model, decomposed):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{path} is not what TensorRT would run: {problems[0]}{more}; export it with `pipeline export`"
        )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those inside If and Loop bodies and local functions too."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _domain(node: ir.Node, model: ir.Model) -> str | None:
    if node.domain not in ("", "ai.onnx") and node.op_identifier() not in model.functions:
        return f"an operator of the domain {node.domain}, for which TensorRT needs a plugin"
    return None


def _attention(node: ir.Node) -> str | None:
    if _value(node, "is_causal"):
        # With a mask the parser refuses it; without one, decode (S < T) would see the first tokens only.
        return (
            "is_causal is read as aligned to the upper left, which is wrong as soon as there is a cache; "
            "use a bool mask"
        )
    for index, problem in _PAST_INPUTS.items():
        if index < len(node.inputs) and node.inputs[index] is not None:
            return f"the input {problem}"
    if any(value.name != "" for value in node.outputs[1:]):  # unused ones too, where they have a name
        return "more than one output is refused by the parser"
    for name, (harmless, problem) in _ATTRIBUTES.items():
        if name in node.attributes and _value(node, name) != harmless:
            return f"the attribute {name} is {problem}"
    return None


def _attention_types(node: ir.Node) -> str | None:
    query, mask = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
    if query is None or mask is None or None in (query.dtype, mask.dtype):
        return None
    if mask.dtype not in (ir.DataType.BOOL, query.dtype):
        return f"the mask is {mask.dtype}, which is neither BOOL nor the type of the query ({query.dtype})"
    return None


def _head_dim(node: ir.Node) -> str | None:
    """The head dimension is the last of a 4-D query; of a 3-D one it is the share of one of its heads."""
    query = node.inputs[0]
    if query is None or query.shape is None or not isinstance(width := query.shape[-1], int):
        return None
    heads = _value(node, "q_num_heads") if len(query.shape) == 3 else 1
    dim = width // int(heads or 1)
    smallest, largest = HEAD_DIMS
    if not smallest <= dim <= largest:
        return f"head dimension {dim}: there are attention kernels for {smallest} to {largest}"
    return None


def _scatter(node: ir.Node, model: ir.Model) -> str | None:
    """TensorRT makes one tensor, its KVCacheUpdate, of the cache before and after; ONNX has two of them."""
    mode, axis = node.attributes.get("mode"), _value(node, "axis")
    if mode is not None and mode.as_string() != "linear":
        return f"mode {mode.as_string()!r} is refused by the parser"
    past, present = node.inputs[0], node.outputs[0]
    if past is None or past not in model.graph.inputs:
        return "the cache is no input of the graph, which the builder refuses"
    if present not in model.graph.outputs:
        return "the cache afterwards is no output of the graph, which the builder refuses"
    if past.shape is not None and axis not in (None, -2, len(past.shape) - 2):
        return f"axis {axis} is refused by the parser: tokens are the last axis but one"
    if past.shape is None or not isinstance(past.shape[-2], int):
        return "the cache has no fixed number of places, which the parser refuses"
    return _written_in_place(node, past, present)


def _written_in_place(node: ir.Node, past: ir.Value, present: ir.Value) -> str | None:
    """What builds, and computes something else than the graph says, or what no cache is for."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return "without write_indices every token is written to the first place"
    others = [use.node for use in past.uses() if use.node is not node and use.node.op_type != "Shape"]
    if others:
        return f"{others[0].name!r} reads the cache too, which TensorRT overwrites in place"
    for reader in (use.node for use in present.uses() if use.node.op_type == "Attention"):
        if len(reader.inputs) < 4 or reader.inputs[3] is None:
            return f"{reader.name!r} has no mask, and sees places that hold nothing"
    return None


def _two_forms(model: ir.Model) -> str | None:
    """A cache that grows beside one that does not: T of the mask is either's, not both's."""
    forms = {"TensorScatter": "", "Concat": ""}
    for value in filter(graphfile.is_cache, model.graph.inputs):
        for node in (use.node for use in value.uses() if use.node.op_type in forms):
            forms[node.op_type] = forms[node.op_type] or str(node.name)
    if all(forms.values()):
        grows, stays = forms["Concat"], forms["TensorScatter"]
        return f"node {grows!r} appends to a cache that grows, and {stays!r} writes into one of fixed size"
    return None


def _value(node: ir.Node, name: str) -> float | int | None:
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None else None
