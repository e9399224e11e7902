"""Quantised weights in a graph: its nodes, its numbers beside PyTorch's, and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pipeline import store
from pipeline.engines import opening
from pipeline.graphs import anatomy, export, graphfile, variants
from pipeline.graphs.passes.quantise import QuantisePass
from pipeline.models.quantisation import files, modules
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.reference import Reference
from pipeline.runtime.onnxruntime import open_session
from pipeline.types import BASE, Precision, SkipSet, UserError
from tests import overlays, quantised, tiny

SKIP = "attn1+mlp2"


def error(graph: Path, reference: Reference, exact: bool = True) -> float:
    """max|a − b| / rms(b) of the logits of two rows: prefill of 8 tokens, then 4 steps."""
    ids = np.random.default_rng(0).integers(3, 96, (2, 12))
    expected = reference.forward(ids, np.ones_like(ids), np.arange(12)[None].repeat(2, 0))[0]
    with opening.open_runner(graph, exact=exact) as runner:
        logits, cache = runner.forward(ids[:, :8], logits_positions=np.arange(8)[None].repeat(2, 0))
        parts = [logits]
        for t in range(8, 12):
            logits, cache = runner.forward(ids[:, t : t + 1], cache)
            parts.append(logits)
    a, b = np.concatenate(parts, 1).astype(np.float64), expected.astype(np.float64)
    return float(np.abs(a - b).max() / np.sqrt((b**2).mean()))


FORMS = ("int4-fp32", "int8-fp32", "int4-fp16", "int8-fp16")
FAST = {("llama", form) for form in FORMS} | {("gemma3_text", "int4-fp16"), ("phi", "int4-fp32")}
"""What is compared in every run; the other architectures and forms are slow."""


@pytest.mark.parametrize(
    ("model_type", "precision"),
    [
        pytest.param(*one, marks=[] if one in FAST else pytest.mark.slow)
        for one in itertools.product(tiny.DIALECTS, FORMS)
    ],
)
def test_the_numbers_are_those_of_pytorch_with_dequantised_weights(
    model_type: str, precision: str, workdir: Path
) -> None:
    graph = quantised.graph(workdir, model_type, precision, SKIP)
    folder, skip, overlay = graph.parent, SkipSet.parse(SKIP), modules.overlays_of(graph)
    assert error(graph, Reference(folder, skip, overlays=overlay)) < (1e-5 if "fp32" in precision else 2e-2)
    assert error(graph, Reference(folder, skip)) > (0.1 if "int4" in precision else 0.01)
    assert graph.stat().st_size < 60_000


def fused(graph: Path, target: Path) -> Counter[str]:
    """Operator → how many nodes ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(target)
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(target, load_external_data=False).graph.node)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("precision", ["int4-fp32", "int8-fp32", "int4-b64-fp32"])
def test_onnx_runtime_fuses_every_product(precision: str, dtype: str, workdir: Path) -> None:
    graph = quantised.graph(workdir, precision=precision, tie_word_embeddings=True, dtype=dtype)
    nodes = fused(graph, workdir / "optimised.onnx")
    assert nodes["MatMulNBits"] == 3 * 7 + 1
    assert not nodes["MatMul"] and not nodes["FusedMatMul"] and not nodes["DequantizeLinear"]


def test_a_static_cache_keeps_the_products_fused(workdir: Path) -> None:
    graph = variants.cut_static(quantised.graph(workdir), 128)
    assert fused(graph, workdir / "optimised.onnx")["MatMulNBits"] == 3 * 7 + 1


def test_every_product_reads_blocks_and_nothing_else_has_changed(workdir: Path) -> None:
    path = quantised.graph(workdir, precision="int4-fp32", dtype="bf16")
    before = graphfile.load(path.with_name("base.fp32.onnx")).graph
    graph = graphfile.load(path).graph
    products = [node for node in graph if node.op_type == "MatMul"]
    assert [node.name for node in products] == [node.name for node in before if node.op_type == "MatMul"]
    for node in products:
        dequantise = node.inputs[1].producer()  # type: ignore[union-attr]
        assert dequantise is not None and dequantise.op_type == "DequantizeLinear"
        assert dequantise.name == f"{str(node.name).rsplit('/', 1)[0]}/DequantizeLinear"
        assert (dequantise.attributes.get_int("axis"), dequantise.attributes.get_int("block_size")) == (0, 32)
        cast = dequantise.inputs[1].producer()  # type: ignore[union-attr]
        assert (
            cast is not None and cast.op_type == "Cast" and cast.attributes.get_int("to") == ir.DataType.FLOAT
        )
    others = {"Transpose", "Cast", "DequantizeLinear"}
    assert [n.name for n in graph if n.op_type not in others] == [
        n.name for n in before if n.op_type not in others
    ]
    initial = graph.initializers
    assert initial["model.layers.0.mlp.down_proj.weight.values"].dtype == ir.DataType.INT4
    assert initial["lm_head.weight.values"].dtype == ir.DataType.INT8
    assert "model.layers.0.mlp.down_proj.weight" not in initial and "lm_head.weight" not in initial
    kept = {name for name in initial if name.startswith("model.") and ".weight." not in name}
    assert {name for name in kept if "norm" not in name} == {"model.embed_tokens.weight"}
    onnx.checker.check_model(str(path))
    assert len(anatomy.find(graphfile.load(path), 3, BASE)) == 6


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_an_fp16_graph_of_4_bits_is_the_checkpoints(tied: bool, workdir: Path) -> None:
    """As it is in the fp16 graph; in 8 bits an engine would write it out in every pass, or refuse it."""
    path = quantised.graph(workdir, precision="int4-fp16", tie_word_embeddings=tied, dtype="bf16")
    graph = graphfile.load(path).graph
    before = graphfile.load(path.with_name("base.fp16.onnx")).graph
    (ours,), (theirs,) = ([n for n in one if n.name == "/lm_head/MatMul"] for one in (graph, before))
    assert ours.inputs[1].producer().op_type == theirs.inputs[1].producer().op_type == "Transpose"  # type: ignore[union-attr]
    assert not any(value.dtype == ir.DataType.INT8 for value in graph.initializers.values())
    assert {"lm_head.weight", "model.embed_tokens.weight"} & set(graph.initializers) == (
        {"model.embed_tokens.weight"} if tied else {"lm_head.weight", "model.embed_tokens.weight"}
    )
    assert sum(node.op_type == "DequantizeLinear" for node in graph) == 3 * 7


def test_scales_of_fp16_graphs_are_read_as_they_are(workdir: Path) -> None:
    graph = graphfile.load(quantised.graph(workdir, precision="int8-fp16")).graph
    for node in graph:
        if node.op_type == "DequantizeLinear":
            assert node.inputs[1] is not None and node.inputs[1].is_initializer()


def test_the_fast_kernel_is_near_and_not_exact(workdir: Path) -> None:
    """What `check` alone asks for: products in fp32, and not of activations in 8 bits."""
    graph = quantised.graph(workdir, precision="int8-fp32")
    reference = Reference(graph.parent, overlays=store.overlays(graph))
    assert 1e-3 < error(graph, reference, exact=False) < 0.2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_maps_stay_as_they_are(precision: Precision, workdir: Path) -> None:
    base = quantised.graph(workdir, precision=f"int4-{precision}")
    skip, folder = SkipSet.parse(SKIP), base.parent
    overlay = overlays.of_form(folder, skip, "linear")
    graph = variants.compensate(base, skip, overlay, "linear")
    assert graph.name == f"{SKIP}~linear.int4-b32-{precision}.onnx"
    assert [file.name for file in store.overlays(graph)] == [
        "quantised.int4-b32-rtn.safetensors",
        overlay.name,
    ]
    reference = Reference(folder, skip, overlays=modules.overlays_of(graph))
    assert error(graph, reference) < (1e-4 if precision == "fp32" else 2e-2)


def test_folds_and_adapters_are_refused(workdir: Path) -> None:
    base = quantised.graph(workdir)
    skip = SkipSet((1, 2))
    folded = overlays.of_form(base.parent, skip, "fold")
    with pytest.raises(UserError, match="take --compensation linear"):
        variants.compensate(base, skip, folded, "fold")
    healed = overlays.make(base.parent, skip, folded="model.layers.0.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"take attn1-2\.fp32\.onnx"):
        variants.graft(variants.cut(base, skip), healed, "heal")


def test_a_pass_over_what_is_quantised_or_another_models(workdir: Path) -> None:
    path = quantised.graph(workdir)
    file = store.overlays(path)[0]
    with pytest.raises(UserError, match="quantised already"):
        QuantisePass(file, "0" * 64, {}, "fp32").requires(graphfile.load(path))
    other = quantised.model(workdir, name="other", hidden_size=32, num_attention_heads=2)
    base = export.export_base(other)
    with pytest.raises(UserError, match="does not hold"):
        QuantisePass(file, "0" * 64, {}, "fp32").call(graphfile.load(base))
    with pytest.raises(UserError, match="the checkpoint's own weights"):
        variants.quantise(path, file, "int4-b32")


def test_a_compensated_graph_is_not_quantised(workdir: Path) -> None:
    path, skip = quantised.graph(workdir), SkipSet((1, 2))
    base = path.with_name("base.fp32.onnx")
    made = variants.compensate(base, skip, overlays.of_form(base.parent, skip, "linear"), "linear")
    with pytest.raises(UserError, match="the checkpoint's own weights; name one that is"):
        variants.quantise(made, store.overlays(path)[0], "int4-b32")
    assert not list(base.parent.glob("attn1-2*int4*"))


def test_two_quantisations_never_share_a_graph_or_a_digest(workdir: Path) -> None:
    paths = [quantised.graph(workdir, precision=p) for p in ("int4-fp32", "int8-fp32", "int4-b64-fp32")]
    assert len({store.sha256(path) for path in paths}) == 3
    assert len({store.result_of(path, "check") for path in paths}) == 3
    assert len({store.contents(path) for path in paths}) == 3


def test_damaged_weights_are_found(workdir: Path) -> None:
    path = quantised.graph(workdir, skip=SKIP)
    file = store.overlays(path)[0]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"--skip {SKIP.replace('+', '.')} --precision int4-b32-fp32"):
        store.sidecar(path)
    assert store.sidecar(quantised.graph(workdir, skip=SKIP)).artefact == "graph"


def test_exact_is_of_sessions(workdir: Path) -> None:
    path = quantised.graph(workdir)
    for exact, level in ((True, "1"), (False, "4")):
        session = open_session(path, path.parent, exact=exact)
        options = session.get_session_options()
        assert options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == level


def test_the_file_is_of_one_model_and_shared_by_its_graphs(workdir: Path) -> None:
    source = quantised.model(workdir)
    form = Quantisation(4, 32)
    graphs = [
        export.export(source, p, SkipSet.parse(s), form) for p in ("fp32", "fp16") for s in ("base", SKIP)
    ]
    assert {store.overlays(path) for path in graphs} == {(files.ensure(source, form),)}
    assert [path.name for path in graphs] == [
        "base.int4-b32-fp32.onnx", f"{SKIP}.int4-b32-fp32.onnx",
        "base.int4-b32-fp16.onnx", f"{SKIP}.int4-b32-fp16.onnx",
    ]  # fmt: skip
