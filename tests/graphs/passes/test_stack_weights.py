"""Graphs whose weights are laid out anew, beside the same graphs as they are exported, in ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pipeline.engines import layout, opening
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.graphs.passes.stack_weights import Stack, StackWeightsPass
from pipeline.models import checkpoint
from pipeline.runtime.onnxruntime import OnnxRunner
from pipeline.runtime.runner import Array
from pipeline.types import Precision, SkipSet
from tests import overlays, quantised, tiny


def base(workdir: Path, model_type: str, precision: Precision = "fp32", dtype: str = "bf16") -> Path:
    folder = tiny.checkpoint(workdir / "source" / f"{model_type}-{dtype}", model_type, dtype)
    return export.export_base(checkpoint.resolve(str(folder)), precision)


def stacked(graph: Path) -> tuple[ir.Model, StackWeightsPass]:
    model, stacking = graphfile.load(graph), StackWeightsPass()
    stacking(model)
    return model, stacking


def kinds(graph: Path) -> set[str]:
    """What is stacked in one layer, without the model's prefixes: 'gate+up', or one weight that is cast."""
    names = [re.findall(r"(\w+?)(?:_proj)?\.weight", stack.name) for stack in stacked(graph)[1].stacks]
    return {"+".join(parts) for parts in names}


def outputs(graph: Path, folder: Path) -> dict[str, Array]:
    """Of all outputs of the rewritten graph, on four tokens behind three others, in two rows."""
    laid_out = layout.laid_out(graphfile.load(graph))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # as `exact` has it
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.parent.resolve())
    )
    with layout.written(laid_out, folder) as source:
        weights = [_value(source.weights[stack.name], stack) for stack in laid_out.stacks]
        options.add_external_initializers([stack.name for stack in laid_out.stacks], weights)
        session = ort.InferenceSession(source.proto, options, providers=["CPUExecutionProvider"])
        runner = OnnxRunner(graph, session)
        return runner.infer(_feeds(runner))


def _value(weight: Array, stack: Stack) -> ort.OrtValue:
    array = np.array(weight).view(stack.dtype.numpy()).reshape(stack.shape)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _feeds(runner: OnnxRunner) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    feeds = runner.feeds(rng.integers(3, 96, (2, 4)))
    shapes = runner.cache_shapes().items()
    feeds["attention_mask"] = np.ones((2, 7), np.int64)
    feeds["position_ids"] = np.broadcast_to(np.arange(3, 7), (2, 4)).copy()
    return feeds | {
        name: rng.normal(size=(2, heads, 3, dim)).astype(dtype) for name, (heads, dim, dtype) in shapes
    }


def error(graph: Path, folder: Path) -> float:
    with opening.open_runner(graph, exact=True) as runner:
        assert isinstance(runner, OnnxRunner)
        expected = runner.infer(_feeds(runner))
    got = outputs(graph, folder)
    assert list(got) == list(expected)
    return max(
        float(np.abs(got[name] - one).max() / np.sqrt(np.mean(np.square(one, dtype=np.float64))))
        for name, one in expected.items()
    )


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_the_numbers_stay(workdir: Path, model_type: str) -> None:
    """Of every architecture, from bf16 weights: casts, stacks and heads."""
    graph = base(workdir, model_type)
    assert any(node.op_type == "Cast" for node in graphfile.load(graph).graph)
    assert error(graph, workdir) < 1e-5


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_in_fp16_the_casts_are_those_of_the_graph(workdir: Path, dtype: str) -> None:
    assert error(base(workdir, "llama", "fp16", dtype), workdir) < 0.01


@pytest.mark.parametrize(
    ("model_type", "pairs"),
    [
        ("llama", {"q+k+v", "gate+up"}),
        ("qwen2", {"gate+up"}),  # biases of q, k and v
        ("qwen3", {"gate+up"}),  # norms of the heads of q and k
        ("phi3", set()),  # stored as one
        ("gpt_neox", set()),
    ],
)
def test_what_is_stacked(workdir: Path, model_type: str, pairs: set[str]) -> None:
    graph = base(workdir, model_type, dtype="fp32")
    assert kinds(graph) == pairs
    model, stacking = stacked(graph)
    rest = {str(value.name) for value in model.graph.initializers.values()}
    for stack in stacking.stacks:
        assert stack.name in rest and not rest & {str(part.name) for part in stack.parts}
        assert stack.nbytes == sum(part.nbytes for part in stack.parts)
    splits = [node for node in model.graph if str(node.name).endswith("/stacked/Split")]
    assert len(splits) == 2 * len(pairs)  # in two layers
    assert (stacking.merged_bytes > 0) == (model_type in ("qwen2", "qwen3"))


def test_a_cast_weight_is_of_the_graphs_type_and_what_is_not_cast_lies_where_it_lay(workdir: Path) -> None:
    model, stacking = stacked(base(workdir, "llama", "fp16"))
    assert {stack.dtype for stack in stacking.stacks} == {ir.DataType.FLOAT16}
    assert not [node for node in model.graph if node.op_type == "Cast" and node.inputs[0].is_initializer()]
    model, stacking = stacked(base(workdir, "llama", "fp16", "fp16"))
    files = {value.name: value.const_value for value in model.graph.initializers.values()}
    down = files["model.layers.0.mlp.down_proj.weight"]
    assert isinstance(down, ir.ExternalTensor) and Path(down.path).is_file()


@pytest.mark.parametrize("name", ["attn1", "mlp0", "block1", "block0-1", "block1~linear"])
def test_variants_too(workdir: Path, name: str) -> None:
    graph, (skip, _, form) = base(workdir, "llama"), name.partition("~")
    chosen = SkipSet.parse(skip)
    if form:
        overlay = overlays.of_form(graph.parent, chosen, form)
        assert error(variants.compensate(graph, chosen, overlay, form), workdir) < 1e-5
    else:
        assert error(variants.cut(graph, chosen), workdir) < 1e-5


def test_a_merged_graph_holds_no_weight_twice(workdir: Path) -> None:
    """Variants multiply the same weights with inputs of their own."""
    graph = base(workdir, "llama", dtype="fp32")
    merged = merge.merge([graph, variants.cut(graph, SkipSet.parse("attn0"))])
    model, stacking = stacked(merged)
    before, after = (
        sum(value.const_value.nbytes for value in one.graph.initializers.values() if value.const_value)
        for one in (graphfile.load(merged), model)
    )
    assert len(stacking.stacks) == 4 and after - before < 1000
    assert error(merged, workdir) < 1e-5


def test_a_weight_that_is_read_otherwise_too_stays_where_it_is(workdir: Path) -> None:
    """Stacked, it would be stored twice."""
    graph = base(workdir, "llama", dtype="fp32")
    model, stacking = graphfile.load(graph), StackWeightsPass()
    up = model.graph.initializers["model.layers.0.mlp.up_proj.weight"]
    node = ir.node("Shape", [up])
    node.outputs[0].name = "sizes"
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    stacking(model)
    assert len(stacking.stacks) == 3 and up.name in model.graph.initializers
    assert stacking.merged_bytes == 2 * up.const_value.nbytes


@pytest.mark.parametrize(("precision", "limit"), [("int4-fp32", 1e-5), ("int8-fp16", 0.01)])
@pytest.mark.parametrize("form", ["", "linear"])
def test_weights_in_blocks_stay_as_they_are(workdir: Path, precision: str, limit: float, form: str) -> None:
    """Nothing of q, k and v, nor of gate and up, is stacked; of scales no more is written than their cast."""
    graph, skip = quantised.graph(workdir, precision=precision, dtype="bf16"), SkipSet.parse("attn1")
    graph = variants.cut(graph, skip) if not form else graph
    if form:
        graph = variants.compensate(graph, skip, overlays.of_form(graph.parent, skip, form), form)
    products = [node.name for node in graphfile.load(graph).graph if node.op_type == "MatMul"]
    model, stacking = stacked(graph)
    assert [node.name for node in model.graph if node.op_type == "MatMul"] == products
    assert all(len(stack.parts) == 1 for stack in stacking.stacks) and stacking.merged_bytes == 0
    assert not any(".values" in stack.name for stack in stacking.stacks)
    is_cast = {".scales" in stack.name for stack in stacking.stacks}
    assert is_cast == ({True, False} if precision.endswith("fp32") else {False})
    assert error(graph, workdir) < limit
