from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pipeline import store
from pipeline.engines import opening
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.models import checkpoint
from pipeline.store.records import MergedRecord
from pipeline.types import SkipSet, UserError
from tests import tiny

NAMES = ["attn3", "attn2-3", "mlp1", "block2-3", "attn0", "block0-3"]


@pytest.mark.parametrize("model_type", ["llama", "phi"])
def test_merged_outputs_are_bit_identical_and_caches_shared(model_type: str, workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type, num_hidden_layers=4)))
    base = export.export_base(base_model)
    graphs = [base, *(variants.cut(base, SkipSet.parse(name)) for name in NAMES)]
    path = merge.merge(graphs)
    onnx.checker.check_model(str(path), full_check=True)
    nodes = lambda p: len(onnx.load(str(p), load_external_data=False).graph.node)  # noqa: E731
    assert nodes(path) < 0.75 * sum(map(nodes, graphs))

    rng = np.random.default_rng(0)
    ids, more = rng.integers(3, 96, (2, 7)), rng.integers(3, 96, (2, 1))
    with opening.open_runner(path) as merged:
        first = merged.infer(merged.feeds(ids))
        cache = {
            k.replace("present.", "past_key_values."): v for k, v in first.items() if k.startswith("present.")
        }
        assert set(cache) == {k for k in merged.inputs if k.startswith("past_")}
        second = merged.infer(merged.feeds(more, merged.cache_of(cache, 2, 7)))
    assert (
        "past_key_values.0.key" in cache and "past_key_values.0.key.mlp1" not in cache
    )  # layer 0 is below the fork
    assert "past_key_values.3.key.mlp1" in cache  # and layer 3 above it
    for graph in graphs:
        name = store.graph_sidecar(graph).variant
        with opening.open_runner(graph) as runner:
            logits, own = runner.forward(ids)
            np.testing.assert_array_equal(first[f"logits.{name}"], logits)
            logits, _ = runner.forward(more, own)
            np.testing.assert_array_equal(second[f"logits.{name}"], logits)


def test_merging_needs_one_base(workdir: Path) -> None:
    first = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "one"))))
    second = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "two", seed=1))))
    half = export.export_base(checkpoint.resolve("one"), "fp16")
    with pytest.raises(UserError, match="differ in model"):
        merge.merge([first, second])
    with pytest.raises(UserError, match="differ in precision"):
        merge.merge([first, half])
    with pytest.raises(UserError, match="at least two"):
        merge.merge([first, first])


def attention_of_a_tracer(scale: float) -> ir.Model:
    """One cache that a node appends to, and whose length another node reads first."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 1]))
    past = ir.Value(name="past_key_values.1.key", type=x.type, shape=ir.Shape(["past", 1]))
    length = ir.node("Shape", [past], {"start": 0, "end": 1}, name="length")
    factor = ir.node("Constant", [], {"value_float": scale}, name="factor")
    new = ir.node("Mul", [x, factor.outputs[0]], name="new")
    present = ir.node("Concat", [past, new.outputs[0]], {"axis": 0}, name="keys")
    size = ir.node("Cast", [length.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name="size")
    total = ir.node("ReduceSum", [present.outputs[0]], {"keepdims": 0}, name="total")
    logits = ir.node("Add", [total.outputs[0], size.outputs[0]], name="sum")
    nodes = [length, factor, new, present, size, total, logits]
    for node in nodes:
        node.outputs[0].name = f"{node.name}:0"
    present.outputs[0].name, logits.outputs[0].name = "present.1.key", "logits"
    for value in (present.outputs[0], logits.outputs[0]):
        value.type = x.type
    outputs = [logits.outputs[0], present.outputs[0]]
    return ir.Model(ir.Graph([x, past], outputs, nodes=nodes, opset_imports={"": 23}), ir_version=10)


def test_caches_that_differ_stay_apart_where_a_tracer_reads_their_length(workdir: Path) -> None:
    scales = {"one": 1.0, "two": 2.0, "again": 2.0}
    merged = merge.merge_models({name: attention_of_a_tracer(scale) for name, scale in scales.items()})
    assert [v.name for v in merged.graph.inputs] == [
        "x",
        "past_key_values.1.key",
        "past_key_values.1.key.two",
    ]
    assert {v.name for v in merged.graph.outputs} == {
        *(f"logits.{name}" for name in scales),
        "present.1.key",
        "present.1.key.two",
    }
    session = ort.InferenceSession(
        ir.to_proto(merged).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x, keys = np.full((1, 1), 5, np.float32), np.array([[1], [2]], np.float32)
    feeds = {"x": x, "past_key_values.1.key": keys, "past_key_values.1.key.two": 2 * keys}
    names = [value.name for value in session.get_outputs()]
    results = dict(zip(names, session.run(None, feeds), strict=True))
    assert results["logits.one"] == 1 + 2 + 5 + 2 and results["logits.two"] == 2 + 4 + 10 + 2
    assert results["logits.again"] == results["logits.two"]


def test_a_cache_that_is_read_by_more_than_its_appending_node_is_refused() -> None:
    model = attention_of_a_tracer(1.0)
    past = next(value for value in model.graph.inputs if graphfile.is_cache(value))
    other = ir.node("Neg", [past], name="other")
    other.outputs[0].name = "present.2.key"
    model.graph.append(other)
    model.graph.outputs.append(other.outputs[0])
    with pytest.raises(UserError, match=r"past_key_values.1.key is read by .*; this graph is not merged"):
        merge.merge_models({"one": model, "two": attention_of_a_tracer(2.0)})


def test_merging_again_does_nothing_and_the_sidecar_names_its_graphs(workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    graphs = [base, variants.cut(base, SkipSet.parse("mlp1"))]
    path = merge.merge(graphs)
    record, stamp = store.sidecar(path), path.stat().st_mtime_ns
    assert isinstance(record, MergedRecord) and path.name.startswith("merged-2-")
    assert record.variants == {"base": store.sha256(base), "mlp1": store.sha256(graphs[1])}
    assert record.weights == store.graph_sidecar(base).weights and record.num_layers == 2
    assert merge.merge(graphs) == path and path.stat().st_mtime_ns == stamp


def test_graphs_with_a_static_cache_are_not_merged(workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    both = (base, variants.cut(base, SkipSet.of("mlp", (0,))))
    graphs = [variants.cut_static(graph, 128) for graph in both]
    with pytest.raises(UserError, match=r"base\.fp32\.static128\.onnx has a static cache, and such graphs"):
        merge.merge(graphs)
