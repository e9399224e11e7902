"""Engines of graphs with weights in blocks, built by TensorRT-RTX on a CPU: the bytes of their plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.engines import build, opening
from pipeline.engines.builder import Builder
from pipeline.engines.settings import BuildSettings
from pipeline.graphs import graphfile, merge, variants
from pipeline.models.quantisation import blocks, files
from pipeline.models.quantisation.files import StoredBlocks
from pipeline.runtime import tensorrt_library
from pipeline.runtime.cache import Cache
from pipeline.types import UserError
from tests import fake_tensorrt, needs, quantised
from tests.fake_tensorrt import Machine
from tests.tiny_engines import HERE

KEPT = BuildSettings(keep_precision=True)


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that looks as if it had no GPU."""
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: None)


def graph(precision: str = "int4-fp16", name: str = "base") -> Path:
    """Of a model whose widths blocks of 128 divide, its head tied."""
    sizes = {"hidden_size": 128, "head_dim": 32, "tie_word_embeddings": True}
    return quantised.graph(Path(), precision=precision, skip=name, **sizes)


def held(plan: Path, source: Path, number: str = "float16") -> dict[str, bool]:
    """Name of each weight that a graph reads in blocks → whether its plan holds just these integers, once.

    TensorRT-RTX keeps integers and scales as they are, [in, out], or, for some kernels of 4 bits, turned to
    [out, in]. What it reads wrongly, dequantises or copies is not found, or found twice.

    Args:
        plan: that was built.
        source: its graph.
        number: type of the scales.
    """
    (weights,) = store.overlays(source)
    data, content = weights.read_bytes(), plan.read_bytes()
    names = set(graphfile.load(source).graph.initializers)
    return {
        name: all(sum(map(content.count, forms)) == 1 for forms in _forms(one, data, number))
        for name, one in files.stored(weights).items()
        if f"{name}.values" in names
    }


def _forms(one: StoredBlocks, data: bytes, number: str) -> tuple[set[bytes], set[bytes]]:
    """What a plan may hold of a weight: its integers, and its scales, as they are and turned."""
    packed, raw = (data[part.offset : part.offset + part.nbytes] for part in (one.values, one.scales))
    scales = np.frombuffer(raw, np.float16).reshape(one.scales.shape).astype(number)
    turned = np.ascontiguousarray(blocks.unpacked(packed, one.bits, one.shape).T)
    return {packed, blocks.packed(turned, one.bits)}, {scales.tobytes(), scales.T.tobytes()}


@needs.rtx
@pytest.mark.parametrize(
    ("precision", "name", "products", "is_head_quantised"),
    [
        ("int4-fp16", "base", 22, False),
        ("int8-b64-fp16", "attn1", 18, True),
        ("int4-b128-fp16", "mlp0", 19, False),
        ("int8-b128-fp16", "block2", 15, True),
        ("int4-b64-fp16", "block1", 15, False),
        ("int4-fp32", "mlp1", 19, True),
    ],
)
def test_a_plan_holds_the_blocks_of_what_its_variant_keeps(
    workdir: Path, precision: str, name: str, products: int, is_head_quantised: bool
) -> None:
    """Every kind of variant, bits and block size; the head in fp16 beside layers of 4 bits, in 8 in fp32."""
    source = graph(precision, name)
    plan = build.build(source, KEPT)
    record = store.engine_sidecar(plan)
    assert plan.name == f"tensorrt-rtx-sm80-{store.variant(source).precision_name}.plan"
    assert record.as_variant() == store.variant(source) and record.quantisation
    found = held(plan, source, "float32" if precision.endswith("fp32") else "float16")
    in_blocks = products if is_head_quantised else products - 1
    assert all(found.values()) and len(found) == in_blocks
    assert ("lm_head.weight" in found) == is_head_quantised
    assert record.build is not None and record.build.layers["DEQUANTIZE"] == in_blocks
    assert record.build.layers["MATRIX_MULTIPLY"] == products


@needs.rtx
@pytest.mark.parametrize("form", ["static128", "all"])
def test_twins_of_other_forms_build(workdir: Path, form: str) -> None:
    source = graph("int4-fp16", "attn0")
    twin = variants.cut_all_logits(source) if form == "all" else variants.cut_static(source, 128)
    plan = build.build(twin)
    assert plan.name == f"tensorrt-rtx-sm80-int4-b32-fp16.{form}.plan" and all(held(plan, twin).values())


@needs.rtx
def test_a_merged_engine_holds_the_blocks_once(workdir: Path) -> None:
    graphs = [graph("int4-fp16", name) for name in ("base", "mlp2")]
    plan = build.build(merge.merge(graphs))
    assert plan.name == "tensorrt-rtx-sm80-int4-b32-fp16.plan"
    assert all(held(plan, graphs[0]).values())
    record = store.engine_sidecar(plan)
    assert set(record.variants or {}) == {"base", "mlp2"} and record.quantisation == "int4-b32"


@needs.rtx
def test_where_a_merged_graph_does_not_build_what_does_is_named(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX 1.7.1 breaks off at these, of 8 bits: "Unexpected exception vector::_M_range_check"."""

    def fail(self: Builder, *args: object) -> None:
        raise UserError("tensorrt-rtx cannot build this network: ERROR why")

    monkeypatch.setattr(Builder, "build", fail)
    graphs = [graph("int8-fp16", name) for name in ("base", "attn1")]
    with pytest.raises(
        UserError, match="ERROR why; build the variants one by one, or merge their fp16 graphs;"
    ):
        build.build(merge.merge(graphs))
    with pytest.raises(UserError, match="ERROR why; TensorRT's own log"):
        build.build(graphs[0])


@needs.rtx
def test_weights_of_4_bits_that_two_products_read_are_refused(workdir: Path) -> None:
    """They end TensorRT-RTX 1.7.1, and with it the process."""
    merged = merge.merge([graph("int4-fp16", name) for name in ("base", "attn1")])
    with pytest.raises(
        UserError, match=r"read model\.layers\.1\.mlp\..*values, 4 bits, .* crashes; .* merge their fp16"
    ):
        build.build(merged)
    assert not Path("engines").exists()


@needs.rtx
def test_fp32_beside_blocks_is_refused_by_the_name_of_its_twin(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"is int8-b32-fp32, .* export it with --precision int8-b32-fp16, or"):
        build.build(graph("int8-b32-fp32"))
    assert not Path("engines").exists()


def test_where_tensorrt_refuses_blocks_what_builds_is_named(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch, Machine(fails="parse_from_file"))
    source = graph()
    with pytest.raises(UserError, match=r"cannot parse .*, take --backend tensorrt-rtx, or the .*log$"):
        build.build(source, BuildSettings(backend="tensorrt"))
    twin = source.with_name("base.fp16.onnx")
    with pytest.raises(UserError, match="cannot parse") as caught:
        build.build(twin, BuildSettings(backend="tensorrt"))
    assert "tensorrt-rtx" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(HERE is None, reason="no NVIDIA GPU is seen here")
@pytest.mark.parametrize("backend", tensorrt_library.BACKENDS)
@pytest.mark.parametrize(("precision", "name"), [("int4-fp16", "base"), ("int8-b32-fp16", "attn1")])
def test_engine_gives_the_numbers_of_its_graph(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, backend: str, precision: str, name: str
) -> None:
    """Prefill at P = 0, then decode on the engine's own cache."""
    if not needs.installed(tensorrt_library.BACKENDS[backend]):
        pytest.skip(f"{backend} is not installed")
    if backend == "tensorrt-rtx" and HERE not in Builder(backend).targets():
        pytest.skip(f"TensorRT-RTX has no code for {HERE}")
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: HERE)
    source = graph(precision, name)
    plan = build.build(source, BuildSettings(backend=backend))
    ids = np.random.default_rng(0).integers(3, 96, (2, 12))
    with opening.open_runner(plan) as engine, opening.open_runner(source, exact=True) as reference:
        caches: list[Cache | None] = [None, None]
        for new in (ids[:, :11], ids[:, 11:]):
            pair = [run.forward(new, cache) for run, cache in zip((engine, reference), caches, strict=True)]
            caches = [cache for _, cache in pair]
            logits, expected = (array.astype(np.float32) for array, _ in pair)
            assert np.abs(logits - expected).max() <= 0.02 * np.abs(expected).max()
