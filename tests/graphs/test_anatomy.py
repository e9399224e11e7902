from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.graphs import anatomy, export, graphfile
from pipeline.models import checkpoint
from pipeline.types import BASE, SkipSet, UserError
from tests import tiny


def test_a_graph_of_another_form_is_refused_with_layer_and_node(workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    model = graphfile.load(base)
    softmaxless = next(n for n in model.graph if n.op_type == "Attention" and "layers.1" in (n.name or ""))
    softmaxless.op_type = "Mystery"
    with pytest.raises(
        UserError, match=r"layer 1: node '/layers.1/attention/.*' joins the stream as mlp, expected attn"
    ):
        anatomy.find(model, 2, BASE)
    with pytest.raises(UserError, match="layer 2: no attn joins"):
        anatomy.find(graphfile.load(base), 3, BASE)
    with pytest.raises(UserError, match="beyond the 1 layers"):
        anatomy.find(graphfile.load(base), 1, BASE)


def decoder(*nodes: ir.Node, inputs: Sequence[ir.Value], weights: Sequence[ir.Value]) -> ir.Model:
    graph = ir.Graph(
        inputs, [nodes[-1].outputs[0]], nodes=nodes, initializers=weights, opset_imports={"": 23}
    )
    return ir.Model(graph, ir_version=10)


def weight(name: str) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(np.eye(4, dtype=np.float32), name=name))


def test_branches_that_are_summed_first_are_two_joins() -> None:
    """GPT-NeoX: x + (attention(norm(x)) + mlp(norm(x))), in whatever order."""
    x, w = ir.Value(name="x"), weight("w")
    mlp = ir.node("MatMul", [x, w], name="mlp")
    scores = ir.node("MatMul", [x, w], name="scores")
    attention = ir.node("Softmax", [scores.outputs[0]], name="attention")
    inner = ir.node("Add", [mlp.outputs[0], attention.outputs[0]], name="inner")
    outer = ir.node("Add", [inner.outputs[0], x], name="outer")
    model = decoder(mlp, scores, attention, inner, outer, inputs=[x], weights=[w])
    joins = anatomy.find(model, 1, BASE)
    assert [(join.sublayer, join.branch) for join in joins] == [
        ((0, "attn"), attention.outputs[0]),
        ((0, "mlp"), mlp.outputs[0]),
    ]
    assert {join.stream for join in joins} == {outer.outputs[0]}
    assert anatomy.other_operand(outer, inner.outputs[0]) is x
    assert anatomy.join_node(joins[0].branch) is inner


def summed(attention: ir.Node | ir.Value, mlp: ir.Node | ir.Value, x: ir.Value, *more: ir.Value) -> ir.Model:
    """x + (attention + mlp): nodes, or biases in their place; `more` are further weights."""
    parts = [one.outputs[0] if isinstance(one, ir.Node) else one for one in (attention, mlp)]
    inner = ir.node("Add", parts, name="inner")
    outer = ir.node("Add", [x, inner.outputs[0]], name="outer")
    nodes = [one for one in (attention, mlp) if isinstance(one, ir.Node)]
    weights = [one for one in (attention, mlp, *more) if isinstance(one, ir.Value)]
    return decoder(*nodes, inner, outer, inputs=[x], weights=weights)


@pytest.mark.parametrize("kinds", ["map mlp", "bias mlp", "bias bias"])
def test_maps_of_branches_that_are_summed_first(kinds: str) -> None:
    """In the first layer too, where the stream is not known yet."""
    x, w, factor = ir.Value(name="x"), weight("w"), weight("compensation.attn0.factor0")
    biases = [weight(f"compensation.{place}.bias") for place in ("attn0", "mlp0")]
    product = lambda by, name: ir.node("MatMul", [x, by], name=name)  # noqa: E731
    if kinds == "map mlp":
        model = summed(product(factor, "map"), product(w, "mlp"), x, w, factor)
    elif kinds == "bias mlp":
        model = summed(biases[0], product(w, "mlp"), x, w)
    else:
        model = summed(*biases, x)
    skip = SkipSet((0,), (0,)) if kinds == "bias bias" else SkipSet((0,))
    stages = anatomy.stages(model, 1, skip)
    names = [s.place.name if isinstance(s, anatomy.MapJoin) else f"{s.kind}{s.layer}" for s in stages]
    assert names == ["attn0", "mlp0"]
    assert [isinstance(s, anatomy.MapJoin) for s in stages] == [True, kinds == "bias bias"]
    assert all(anatomy.stream_before(stage) is x for stage in stages)


def test_an_add_without_a_weight_between_is_no_join() -> None:
    """The Add inside a GELU, x + 0.0447·x³, descends from the stream, and through no weight."""
    x, w = ir.Value(name="x"), weight("w")
    cube = ir.node("Mul", [x, x], name="cube")
    gelu = ir.node("Add", [x, cube.outputs[0]], name="gelu")
    product = ir.node("MatMul", [gelu.outputs[0], w], name="product")
    residual = ir.node("Add", [x, product.outputs[0]], name="residual")
    model = decoder(cube, gelu, product, residual, inputs=[x], weights=[w])
    (join,) = anatomy.find(model, 1, SkipSet((0,), ()))
    assert join.sublayer == (0, "mlp") and join.branch is product.outputs[0]


def test_a_branch_with_two_readers_is_refused() -> None:
    x, w = ir.Value(name="x"), weight("w")
    product = ir.node("MatMul", [x, w], name="product")
    ir.node("Add", [x, product.outputs[0]])
    ir.node("Relu", [product.outputs[0]])
    with pytest.raises(UserError, match="'product' has 2 readers where one residual Add was expected"):
        anatomy.join_node(product.outputs[0])
