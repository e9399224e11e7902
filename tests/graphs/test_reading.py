"""What a sublayer reads, in graphs whose norms are one node, several, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.graphs import anatomy, export, graphfile
from pipeline.graphs.reading import sublayer_input
from pipeline.models import checkpoint
from pipeline.types import BASE, UserError
from tests import tiny


def inputs_of(model: ir.Model, layers: int) -> list[ir.Value]:
    joins = anatomy.find(model, layers, BASE)
    streams = {join.stream for join in joins} | {anatomy.stream_before(joins[0])}
    constants = anatomy.constants(model)
    return [sublayer_input(model, join, streams, constants) for join in joins]


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_it_is_the_output_of_the_norm_before(model_type: str, workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type))))
    model = graphfile.load(base)
    found = inputs_of(model, 2)
    joins = anatomy.find(model, 2, BASE)
    if model_type == "olmo2":  # no norm before
        before = [anatomy.stream_before(joins[0]), *(join.stream for join in joins[:-1])]
        assert found == before
        return
    producers = [value.producer() for value in found]
    assert all(node and node.op_type in ("RMSNormalization", "LayerNormalization") for node in producers)
    assert all(
        f"layers.{join.layer}/" in str(node.name) for join, node in zip(joins, producers, strict=True) if node
    )
    assert (found[0] is found[1]) == (model_type == "phi")  # one norm for both


def chain(*nodes: ir.Node, inputs: Sequence[ir.Value], weights: Sequence[ir.Value]) -> ir.Model:
    outputs = [nodes[-1].outputs[0]]
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def weight(name: str) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(np.eye(4, dtype=np.float32), name=name))


def gated(second_reads_norm: bool) -> ir.Model:
    """A gated MLP behind a norm of two nodes; the shape of its input is taken along, as tracers do."""
    x, scale, up, gate, down = ir.Value(name="x"), *map(weight, ("scale", "up", "gate", "down"))
    root = ir.node("Sqrt", [x], name="root")
    norm = ir.node("Mul", [root.outputs[0], scale], name="norm")
    read = norm.outputs[0] if second_reads_norm else root.outputs[0]
    one = ir.node("MatMul", [norm.outputs[0], up], name="up")
    two = ir.node("MatMul", [read, gate], name="gate")
    both = ir.node("Mul", [one.outputs[0], two.outputs[0]], name="gated")
    size = ir.node("Shape", [norm.outputs[0]], name="size")
    same = ir.node("Reshape", [both.outputs[0], size.outputs[0]], name="same")
    out = ir.node("MatMul", [same.outputs[0], down], name="down")
    add = ir.node("Add", [x, out.outputs[0]], name="residual")
    nodes = [root, norm, one, two, both, size, same, out, add]
    return chain(*nodes, inputs=[x], weights=[scale, up, gate, down])


def join_of(model: ir.Model) -> tuple[anatomy.Join, set[ir.Value]]:
    add = model.graph[-1]
    x, branch = add.inputs
    assert x is not None and branch is not None
    return anatomy.Join(0, "mlp", branch, add.outputs[0]), {x, add.outputs[0]}


def test_a_traced_norm_of_several_nodes() -> None:
    model = gated(second_reads_norm=True)
    join, streams = join_of(model)
    assert sublayer_input(model, join, streams, anatomy.constants(model)).producer().name == "norm"  # type: ignore[union-attr]


def test_products_that_read_different_values_are_refused() -> None:
    model = gated(second_reads_norm=False)
    join, streams = join_of(model)
    with pytest.raises(UserError, match=r"layer 0 mlp: its first products read 2 values \(up, gate\)"):
        sublayer_input(model, join, streams, anatomy.constants(model))
