"""Each thing that TensorRT misreads or refuses late is found in the graph, with the node named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pipeline import checkpoint, export, graphfile, lint, skip
from pipeline.types import SkipSet, UserError
from tests import tiny

HALF, FLOAT, BOOL, INT = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT64


def value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def attention(
    mask: ir.DataType | None = BOOL,
    dim: int = 64,
    opset: int = 23,
    extra: tuple[str, ...] = (),
    outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> ir.Model:
    """A graph of one Attention node."""
    q, k, v = (value(n, HALF, "b", 4, s, dim) for n, s in (("q", "s"), ("k", "t"), ("v", "t")))
    inputs = [q, k, v]
    if mask is not None:
        inputs.append(value("mask", mask, "b", 1, "s", "t"))
    more: dict[str, ir.Value] = {
        "past_key": value("past_key", HALF, "b", 4, "p", dim),
        "past_value": value("past_value", HALF, "b", 4, "p", dim),
        "nonpad_kv_seqlen": value("nonpad", INT, "b"),
    }
    places: list[ir.Value | None] = [*inputs, *[None] * (7 - len(inputs))]
    for name in extra:
        places[{"past_key": 4, "past_value": 5, "nonpad_kv_seqlen": 6}[name]] = more[name]
    node = ir.node(
        "Attention",
        places[: 7 if extra else len(inputs)],
        attributes,
        domain=domain,
        num_outputs=outputs,
        name="/layers.0/Attention",
    )
    for i, output in enumerate(node.outputs):
        output.name, output.type, output.shape = f"y{i}", ir.TensorType(HALF), ir.Shape(["b", 4, "s", dim])
    used = [v for v in places if v is not None]
    imports = {"": opset} | ({domain: 1} if domain else {})
    return ir.Model(ir.Graph(used, node.outputs, nodes=[node], opset_imports=imports, name="g"), ir_version=10)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "causal": ({"mask": None, "is_causal": 1}, "is_causal"),
    "causal with mask": ({"is_causal": 1}, "is_causal"),
    "past": ({"extra": ("past_key", "past_value"), "outputs": 3}, "past_key is refused"),
    "nonpad": ({"extra": ("nonpad_kv_seqlen",), "opset": 24}, "nonpad_kv_seqlen is ignored without a word"),
    "more outputs": ({"outputs": 3}, "more than one output"),
    "softcap": ({"softcap": 30.0}, "softcap"),
    "softmax precision": ({"softmax_precision": 1}, "softmax_precision"),
    "float mask": ({"mask": FLOAT}, "neither BOOL nor the type of the query"),
    "head dimension 8": ({"dim": 8}, "head dimension 8"),
    "head dimension 512": ({"dim": 512}, "head dimension 512"),
    "opset": ({"opset": 25}, "opset 25"),
    "domain": ({"domain": "com.microsoft"}, "domain com.microsoft"),
}


@pytest.mark.parametrize("case", CASES)
def test_found(case: str) -> None:
    settings, message = CASES[case]
    found = lint.lint(attention(**settings))
    assert any(message in line for line in found), found
    assert case == "opset" or "/layers.0/Attention" in found[0]


@pytest.mark.parametrize(
    "settings", [{}, {"mask": HALF}, {"mask": None}, {"dim": 256}, {"dim": 16, "is_causal": 0, "softcap": 0.0}]
)
def test_fine(settings: dict[str, Any]) -> None:
    assert lint.lint(attention(**settings)) == []


def test_a_circular_scatter() -> None:
    cache, new, at = value("cache", HALF, 1, 4, 32, 16), value("new", HALF, 1, 4, 1, 16), value("at", INT, 1)
    node = ir.node("TensorScatter", [cache, new, at], {"mode": "circular", "axis": -2}, name="write")
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(HALF), ir.Shape([1, 4, 32, 16])
    model = ir.Model(ir.Graph([cache, new, at], node.outputs, nodes=[node], opset_imports={"": 24}, name="g"), ir_version=10)
    assert "'write' (TensorScatter): mode 'circular'" in lint.lint(model)[0]


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_our_own_graphs_are_fine(model_type: str, workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type))), "fp16")
    for name in ("base", "attn1", "block0-1"):
        path = skip.cut(base, SkipSet.parse(name))
        lint.require(graphfile.load(path), path)


def test_require_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"x.onnx would not be what TensorRT runs: .*export it with `pipeline export`"
    ) as caught:
        lint.require(attention(mask=None, is_causal=1), Path("x.onnx"))
    assert "\n" not in str(caught.value)


def test_feeds_are_not_needed() -> None:
    """The lint reads structure only: a weight whose file is missing does not matter to it."""
    external = ir.ExternalTensor("nowhere.bin", 0, 8, HALF, shape=ir.Shape([2, 2]), name="w", base_dir="")
    weight = ir.Value(name="w", const_value=external, type=ir.TensorType(HALF), shape=ir.Shape([2, 2]))
    x = value("x", HALF, 2, 2)
    node = ir.node("MatMul", [x, weight], name="m")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", ir.TensorType(HALF), ir.Shape([2, 2])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 23}, name="g")
    assert lint.lint(ir.Model(graph, ir_version=10)) == [] and np.prod(weight.shape.numpy()) == 4
