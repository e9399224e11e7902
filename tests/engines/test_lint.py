"""Each rule of the lint on a hand-made graph that breaks just this rule, and on one that keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from pipeline.engines import lint
from pipeline.types import UserError

HALF, FLOAT, BOOL, INT = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT64


def value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def model(*nodes: ir.Node, opset: int = 23, **rest: Any) -> ir.Model:
    produced = {id(out) for node in nodes for out in node.outputs}
    inputs = {id(v): v for node in nodes for v in node.inputs if v is not None and id(v) not in produced}
    graph = ir.Graph(
        list(inputs.values()),
        [nodes[-1].outputs[0]],
        nodes=nodes,
        opset_imports={"": opset, "com.microsoft": 1},
        name="g",
    )
    return ir.Model(graph, ir_version=10, **rest)


def attention(
    *,
    mask: ir.DataType | None = BOOL,
    dim: int = 16,
    extra: tuple[ir.Value | None, ...] = (),
    outputs: int = 1,
    **attributes: Any,
) -> ir.Node:
    """Attention-23 as the contract has it: fp16, 4-D, four query heads on two key/value heads, a mask."""
    inputs = [value("q", HALF, "B", 4, "S", dim), *(value(n, HALF, "B", 2, "T", dim) for n in "kv")]
    masks = [value("mask", mask, "B", 1, "S", "T") if mask is not None else None]
    return ir.node(
        "Attention",
        [*inputs, *masks, *extra],
        attributes,
        num_outputs=outputs,
        name="/layers.3/attention/attention",
    )


def test_the_contract_passes() -> None:
    assert lint.lint(model(attention())) == []
    assert lint.lint(model(attention(mask=HALF, is_causal=0, softcap=0.0))) == []


def past(name: str) -> ir.Value:
    return value(name, HALF, "B", 2, "P", 16)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (attention(is_causal=1), "is_causal"),
        (attention(is_causal=1, mask=None), "is_causal"),
        (attention(extra=(past("past_key"), past("past_value"))), "past_key"),
        (attention(extra=(None, past("past_value"))), "past_value"),
        (attention(extra=(None, None, value("lengths", INT, "B"))), "nonpad_kv_seqlen"),
        (attention(softcap=30.0), "softcap"),
        (attention(softmax_precision=1), "softmax_precision"),
        (attention(left_window_size=7), "left_window_size"),
        (attention(mask=FLOAT), "the mask is FLOAT"),
        (attention(dim=8), "head dimension 8:"),
        (attention(dim=10), "head dimension 10:"),
        (attention(dim=320), "head dimension 320:"),
    ],
)
def test_attention_rules(node: ir.Node, why: str) -> None:
    (problems,) = lint.lint(model(node))
    assert why in problems and "'/layers.3/attention/attention' (Attention)" in problems


@pytest.mark.parametrize(("names", "fine"), [(("y", "keys", "values"), False), (("y", "", ""), True)])
def test_a_second_output_is_refused_where_it_has_a_name(names: tuple[str, ...], fine: bool) -> None:
    node = attention(outputs=3)
    for output, name in zip(node.outputs, names, strict=True):
        output.name = name
    problems = lint.lint(model(node))
    assert (problems == []) is fine and all("more than one output" in line for line in problems)


@pytest.mark.parametrize(("width", "fine"), [(64, True), (32, False)])
def test_head_dimension_of_a_3d_query(width: int, fine: bool) -> None:
    inputs = [value(n, HALF, "B", "S", width) for n in "qkv"]
    node = ir.node("Attention", inputs, {"q_num_heads": 4, "kv_num_heads": 4}, name="a")
    assert (lint.lint(model(node)) == []) is fine


def test_head_dimension_comes_from_shape_inference() -> None:
    """The query of a real graph is an inner value without a shape of its own."""
    shape = ir.node("Constant", [], {"value_ints": [0, 0, 4, 8]})
    split = ir.node("Reshape", [value("hidden", HALF, "B", "S", 32), shape.outputs[0]])
    turned = ir.node("Transpose", [split.outputs[0]], {"perm": [0, 2, 1, 3]})
    node = attention(dim=8)
    node.replace_input_with(0, turned.outputs[0])
    (problems,) = lint.lint(model(shape, split, turned, node))
    assert "head dimension 8:" in problems


def test_decomposed_attention_needs_no_kernel() -> None:
    assert lint.lint(model(attention(dim=8)), decomposed=True) == []
    assert lint.lint(model(attention(dim=8, is_causal=1)), decomposed=True)


def test_contrib_operators_are_refused() -> None:
    node = ir.node(
        "GroupQueryAttention", [value("q", HALF, "B", "S", 64)], domain="com.microsoft", name="gqa"
    )
    (problems,) = lint.lint(model(node))
    assert "'gqa' (GroupQueryAttention)" in problems and "com.microsoft" in problems


def test_inner_graphs_and_local_functions_are_read() -> None:
    inner = attention(is_causal=1)
    body = ir.Graph([], list(inner.outputs), nodes=[inner], name="then")
    other = ir.node("Constant", [], {"value_float": 0.0})
    branch = ir.Graph([], list(other.outputs), nodes=[other], name="else")
    choice = ir.node("If", [value("c", BOOL)], {"then_branch": body, "else_branch": branch}, name="choice")
    graph = ir.Graph(
        [*(v for v in inner.inputs if v is not None), *(v for v in choice.inputs if v is not None)],
        list(choice.outputs),
        nodes=[choice],
        opset_imports={"": 23},
        name="g",
    )
    assert any("is_causal" in line for line in lint.lint(ir.Model(graph, ir_version=10)))

    wrong = attention(is_causal=1)
    inputs = [v for v in wrong.inputs if v is not None]
    function = ir.Function(
        "local",
        "heads",
        graph=ir.Graph(inputs, list(wrong.outputs), nodes=[wrong], opset_imports={"": 23}),
        attributes=[],
    )
    call = ir.node("heads", [value(v.name or "", HALF, "B") for v in inputs], domain="local", name="call")
    (problems,) = lint.lint(model(call, functions=[function]))
    assert "is_causal" in problems  # and nothing of the call, which needs no plugin


@pytest.mark.parametrize(("mode", "fine"), [("linear", True), ("circular", False)])
def test_scatter_modes(mode: str, fine: bool) -> None:
    cache = value("cache", HALF, "B", 2, 64, 16)
    new = value("new", HALF, "B", 2, 1, 16)
    node = ir.node(
        "TensorScatter", [cache, new, value("at", INT, "B")], {"mode": mode, "axis": -2}, name="write"
    )
    assert (lint.lint(model(node, opset=24)) == []) is fine


@pytest.mark.parametrize(("opset", "fine"), [(23, True), (24, True), (25, False)])
def test_opset(opset: int, fine: bool) -> None:
    problems = lint.lint(model(ir.node("Identity", [value("x", HALF, 2)]), opset=opset))
    assert (problems == []) is fine and all(f"opset {opset}" in line for line in problems)


def test_require_says_it_in_one_line() -> None:
    first, second = attention(is_causal=1), attention(softcap=1.0)
    with pytest.raises(UserError) as caught:
        lint.require(model(first, second), Path("graphs/m/base.fp16.onnx"))
    message = str(caught.value)
    assert (
        "\n" not in message and message.startswith("graphs/m/base.fp16.onnx ") and "(and 1 more)" in message
    )
    lint.require(model(attention()), Path("graphs/m/base.fp16.onnx"))


def written(*, places: int | str = 64, at: bool = True, **attributes: Any) -> ir.Node:
    """TensorScatter-24 as the static form has it."""
    cache, new = value("past_key_values.0.key", HALF, "B", 2, places, 16), value("new", HALF, "B", 2, "S", 16)
    indices = [value("at", INT, "B")] if at else []
    return ir.node("TensorScatter", [cache, new, *indices], attributes, name="/layers.0/keys")


def reading(keys: ir.Value, masked: bool = True) -> ir.Node:
    mask = [value("mask", BOOL, "B", 1, "S", 64)] if masked else []
    inputs = [value("q", HALF, "B", 4, "S", 16), keys, value("v", HALF, "B", 2, 64, 16), *mask]
    return ir.node("Attention", inputs, name="/layers.0/attend")


def static(*nodes: ir.Node, outputs: int = 1) -> ir.Model:
    """Nodes with the first one's output among the graph's where that is wanted."""
    graph = model(*nodes, opset=24)
    if outputs and nodes[0].outputs[0] not in graph.graph.outputs:
        graph.graph.outputs.append(nodes[0].outputs[0])
    return graph


def test_the_static_form_passes() -> None:
    node = written(axis=2)
    assert lint.lint(static(node, reading(node.outputs[0]))) == []
    assert lint.lint(static(written(axis=-2))) == [] and lint.lint(static(written())) == []


def test_scatters_that_are_refused_or_write_elsewhere() -> None:
    """Without write_indices, and where another node reads the cache, TensorRT-RTX 1.7.1 builds."""
    made = ir.node("Identity", [value("x", HALF, "B", 2, 64, 16)], name="made")
    of_made, behind = written(), written()
    of_made.replace_input_with(0, made.outputs[0])
    other, alone = written(), written()
    assert other.inputs[0] is not None
    cases = {
        "axis 1 is refused": static(written(axis=1)),
        "no fixed number of places": static(written(places="N")),
        "without write_indices": static(written(at=False)),
        "is no input of the graph": model(made, of_made, opset=24),
        "is no output of the graph": static(behind, ir.node("Neg", [behind.outputs[0]]), outputs=0),
        "reads the cache too": static(other, reading(other.inputs[0])),
        "has no mask, and sees places": static(alone, reading(alone.outputs[0], masked=False)),
    }
    for why, graph in cases.items():
        problems = lint.lint(graph)
        assert len(problems) == 1 and why in problems[0] and "/layers.0/keys" in problems[0], (why, problems)


def growing() -> ir.Node:
    past, new = value("past_key_values.1.key", HALF, "B", 2, "P", 16), value("k", HALF, "B", 2, "S", 16)
    return ir.node("Concat", [past, new], {"axis": 2}, name="/layers.1/keys")


def test_the_two_forms_of_a_cache_are_kept_apart() -> None:
    (problem,) = lint.lint(static(written(), growing()))
    assert "'/layers.1/keys' appends to a cache that grows" in problem and "'/layers.0/keys'" in problem
    assert lint.lint(model(growing())) == [] == lint.lint(static(written()))
