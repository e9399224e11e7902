"""Quantised graphs in the chain: cut, merged, with other heads and caches, found again, built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.cli import prerequisites
from pipeline.engines import build, opening
from pipeline.engines.settings import BuildSettings
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.models import checkpoint
from pipeline.models.quantisation.names import Quantisation
from pipeline.types import BASE, SkipSet, UserError
from tests import needs, overlays, quantised
from tests.exported import as_optimum_exports

INT4 = Quantisation(4, 32)
SKIP = SkipSet((1,), (2,))
IDS = np.array([[5, 9, 13, 40, 7]])


@pytest.fixture
def base(workdir: Path) -> Path:
    return quantised.graph(workdir, precision="int4-fp32")


def logits(graph: Path, exact: bool = True) -> np.ndarray:
    with opening.open_runner(graph, exact=exact) as runner:
        return runner.forward(IDS)[0]


def test_cutting_reads_no_weights(base: Path) -> None:
    before = store.overlays(base)[0].stat().st_atime_ns
    path = variants.cut(base, SKIP)
    record = store.graph_sidecar(path)
    assert (record.quantisation, record.variant, path.stat().st_size < 60_000) == (
        "int4-b32",
        SKIP.name,
        True,
    )
    assert record.quantised == store.graph_sidecar(base).quantised
    assert record.base is not None and record.base.file == base.name
    assert store.overlays(base)[0].stat().st_atime_ns >= before
    names = graphfile.load(path).graph.initializers
    assert not any(name.startswith("model.layers.1.self_attn.q") for name in names)
    assert "model.layers.1.mlp.up_proj.weight.values" in names


def test_a_merged_graph_shares_what_is_dequantised(base: Path) -> None:
    cut = variants.cut(base, SKIP)
    path = merge.merge([base, cut])
    assert path.name.endswith(".int4-b32-fp32.onnx")
    record = store.sidecar(path)
    assert record.artefact == "merged" and record.quantisation == "int4-b32"
    assert [file.file for file in record.healed] == ["quantised.int4-b32-rtn.safetensors"]
    graph = graphfile.load(path).graph
    assert sum(node.op_type == "DequantizeLinear" for node in graph) == 3 * 7 + 1
    with opening.open_runner(path, exact=True) as runner:
        outputs = runner.infer(runner.feeds(IDS), ["logits.base", f"logits.{SKIP.name}"])
    for name, alone in (("base", base), (SKIP.name, cut)):
        assert np.allclose(outputs[f"logits.{name}"], logits(alone), atol=1e-5)
    with pytest.raises(UserError, match="differ in quantisation"):
        merge.merge([base, base.with_name("base.fp32.onnx")])


def test_other_heads_and_caches(base: Path) -> None:
    every = variants.cut_all_logits(base)
    static = variants.cut_static(base, 128)
    assert [every.name, static.name] == ["base.int4-b32-fp32.all.onnx", "base.int4-b32-fp32.static128.onnx"]
    usual = ["base.fp32.onnx", base.name]
    assert [path.name for path in store.graphs_of("m")] == usual
    twins = {path.name for path in store.graphs_of("m", twins=True)}
    assert twins == {*usual, every.name, static.name}
    with opening.open_runner(every, exact=True) as runner:
        assert np.allclose(runner.infer(runner.feeds(IDS))["logits"][:, -1:], logits(base), atol=1e-5)
    assert np.allclose(logits(static), logits(base), atol=1e-5)


def test_the_fp16_twin_has_the_same_blocks(base: Path) -> None:
    overlay = overlays.of_form(base.parent, SKIP, "linear")
    for path in (base, variants.cut(base, SKIP), variants.compensate(base, SKIP, overlay, "linear")):
        twin = prerequisites.fp16_twin(path)
        assert twin.name == path.name.replace("fp32", "fp16")
        assert store.overlays(twin) == store.overlays(path)
        assert np.abs(logits(twin) - logits(path)).max() < 0.05 * np.abs(logits(path)).max()


def test_a_model_without_all_sublayers(workdir: Path) -> None:
    """Whose variant is authored itself, and quantised so."""
    source = quantised.model(workdir)
    weights = source.folder / "model.safetensors"
    tensors = load_file(weights)
    gone = ("model.layers.1.self_attn", "model.layers.1.input_layernorm")
    save_file({n: t for n, t in tensors.items() if not n.startswith(gone)}, weights, {"format": "pt"})
    import json

    config = source.folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "drop_attn_list": [1]}))
    path = export.export(checkpoint.open_checkpoint(source.folder), "fp32", SkipSet((1,)), INT4)
    record = store.graph_sidecar(path)
    assert path.name == "attn1.int4-b32-fp32.onnx" and record.base is not None
    assert np.isfinite(logits(path)).all()


def test_graphs_from_elsewhere_are_refused(workdir: Path) -> None:
    source = quantised.model(workdir, name="own")
    folder = as_optimum_exports(source.folder, export.export_base(source), workdir / "exported")
    theirs = export.export_from_onnx(folder)
    with pytest.raises(UserError, match=r"exported elsewhere.*export the checkpoint itself"):
        export.export(checkpoint.open_checkpoint(theirs.parent), "fp32", BASE, INT4)


@needs.rtx
@pytest.mark.slow
def test_tensorrt_rtx_builds_them(workdir: Path) -> None:
    plans = {}
    for precision in ("fp16", "int4-fp16"):
        graph = (
            quantised.graph(workdir, skip=SKIP.name, precision=precision)
            if "int" in precision
            else (export.export(quantised.model(workdir), "fp16", SKIP))
        )
        plans[precision] = build.build(graph, BuildSettings(targets=("sm80",)))
    assert plans["int4-fp16"].name == "tensorrt-rtx-sm80-int4-b32-fp16.plan"
    record = store.engine_sidecar(plans["int4-fp16"])
    assert record.quantisation == "int4-b32" and record.as_variant() == store.variant(graph)
    (theirs,), (own,) = (store.overlays(one) for one in (plans["int4-fp16"], graph))
    assert theirs.resolve() == own.resolve()
