"""Compensated graphs in the chain: found again, healed, merged, with all logits, built by TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.cli import prerequisites
from pipeline.engines import build, opening
from pipeline.engines.settings import BuildSettings
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.store.records import FileDigest
from pipeline.types import BASE, SkipSet, UserError
from tests import needs, overlays, tiny

SKIP = SkipSet((1, 2), (0, 2))
UP = "model.layers.3.mlp.up_proj.weight"


@pytest.fixture
def base(workdir: Path) -> Path:
    folder = tiny.checkpoint(workdir / "graphs" / "m", num_hidden_layers=4, head_dim=16)
    return export.export_base(checkpoint.open_checkpoint(folder))


def compensated(base: Path, form: str = "linear", skip: SkipSet = SKIP) -> Path:
    return variants.compensate(base, skip, overlays.of_form(base.parent, skip, form), form)


def healed(graph: Path) -> Path:
    """The graph with one weight changed, as an adapter changes it, in a file of its own."""
    variant = store.variant(graph)
    path = store.overlay_path(graph.parent, f"{variant.name}~heal")
    weight = load_file(graph.parent / "model.safetensors")[UP]
    save_file({UP: weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)) / 9}, path)
    return variants.graft(graph, path, "heal")


def logits(graph: Path) -> np.ndarray:
    with opening.open_runner(graph) as runner:
        return runner.forward(np.array([[5, 9, 13, 40, 7]]))[0]


def test_it_is_found_again_and_says_what_it_is(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = compensated(base)
    record, stamp = store.graph_sidecar(path), path.stat().st_mtime_ns
    assert path.name == f"{SKIP.name}~linear.fp32.onnx" and record.variant == f"{SKIP.name}~linear"
    assert record.skip_set == SKIP and record.compensation == "linear" and record.healed is None
    overlay = store.overlay_path(base.parent, record.variant)
    assert record.compensated == FileDigest(file=overlay.name, sha256=store.sha256(overlay))
    assert record.base == FileDigest(file=base.name, sha256=store.sha256(base))
    assert store.overlays(path) == (overlay,) and overlay in store.weight_paths(path)
    assert variants.compensate(base, SKIP, overlay, "linear") == path and path.stat().st_mtime_ns == stamp
    overlay.write_bytes(overlay.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="--compensation linear --precision fp32`"):
        store.sidecar(path)


def test_an_adapter_comes_on_top(base: Path) -> None:
    """Of a weight that both files hold, the adapter's counts."""
    graph = variants.compensate(base, SKIP, overlay := overlays.of_form(base.parent, SKIP, "fold"), "fold")
    assert UP.replace("up_proj", "down_proj") in load_file(overlay)
    twin = healed(graph)
    record = store.graph_sidecar(twin)
    assert twin.name == f"{SKIP.name}~fold~heal.fp32.onnx" and (record.compensation, record.adapter) == (
        "fold",
        "heal",
    )
    assert [path.name.split("~", 1)[1] for path in store.overlays(twin)] == [
        "fold.safetensors", "fold~heal.safetensors",
    ]  # fmt: skip
    metadata = graphfile.load(twin).metadata_props
    assert {"compensation_sha256", "healed_sha256"} <= set(metadata)
    ids = np.array([[5, 9, 13, 40, 7]])
    for path in (graph, twin):
        reference = Reference(base.parent, SKIP, overlays=store.overlays(path))
        expected = reference.forward(ids, np.ones_like(ids), np.arange(5)[None])[0][:, -1:]
        assert np.abs(logits(path) - expected).max() < 1e-4 * np.sqrt((expected**2).mean())
    assert np.abs(logits(graph) - logits(twin)).max() > 1e-3


def test_the_twin_with_all_logits(base: Path) -> None:
    graph = healed(compensated(base, "rank4"))
    twin = variants.cut_all_logits(graph)
    assert twin.name == f"{SKIP.name}~rank4~heal.fp32.all.onnx" and store.overlays(twin) == store.overlays(
        graph
    )
    with opening.open_runner(twin) as runner:
        every = runner.infer(runner.feeds(np.array([[5, 9, 13, 40, 7]])))["logits"]
    np.testing.assert_array_equal(every[:, -1:], logits(graph))


def test_merged_with_others_each_gives_its_own_numbers_bit_for_bit(base: Path) -> None:
    cut, linear, bias = variants.cut(base, SKIP), compensated(base), compensated(base, "bias")
    graphs = [base, cut, linear, bias, healed(linear), compensated(base, "fold")]
    path = merge.merge(graphs)
    ids = np.array([[5, 9, 13, 40, 7]])
    with opening.open_runner(path) as merged:
        outputs = merged.infer(merged.feeds(ids))
    for graph in graphs:
        np.testing.assert_array_equal(outputs[f"logits.{store.variant(graph).name}"], logits(graph))
    names = {file.name for file in store.weight_paths(path)}
    assert {f"{SKIP.name}~{form}.safetensors" for form in ("linear", "bias", "fold", "linear~heal")} <= names
    nodes = lambda p: len(graphfile.load(p).graph)  # noqa: E731
    assert nodes(path) < 0.75 * sum(map(nodes, graphs))


def test_the_fp16_twin_reads_the_same_maps(base: Path) -> None:
    graph = compensated(base)
    twin = prerequisites.fp16_twin(graph)
    assert twin.name == f"{SKIP.name}~linear.fp16.onnx" and store.overlays(twin) == store.overlays(graph)
    both = prerequisites.fp16_twin(healed(graph))
    assert both.name == f"{SKIP.name}~linear~heal.fp16.onnx" and len(store.overlays(both)) == 2
    assert both == variants.graft(twin, store.overlays(both)[1], "heal")
    a, b = logits(twin).astype(np.float32), logits(graph)
    assert 0 < np.abs(a - b).max() < 2e-2 * np.abs(b).max()


def test_what_cannot_be_compensated_is_refused(base: Path, workdir: Path) -> None:
    overlay = overlays.of_form(base.parent, SKIP, "linear")
    with pytest.raises(UserError, match="base skips nothing"):
        variants.compensate(base, BASE, overlay, "linear")
    with pytest.raises(UserError, match="'best' names no compensation"):
        variants.compensate(base, SKIP, overlay, "best")
    with pytest.raises(UserError, match="is not a base graph"):
        variants.compensate(variants.cut(base, SKIP), SKIP, overlay, "linear")
    with pytest.raises(UserError, match="layer 9 does not exist"):
        variants.compensate(base, SkipSet((9,)), overlay, "linear")
    elsewhere = workdir / overlay.name
    elsewhere.write_bytes(overlay.read_bytes())
    with pytest.raises(UserError, match=r"is no file beside .*base\.fp32\.onnx"):
        variants.compensate(base, SKIP, elsewhere, "linear")


def test_folds_into_a_graph_that_was_exported_elsewhere_are_refused(base: Path) -> None:
    graphfile.save(graphfile.load(base), base, {**store.graph_sidecar(base).plain(), "contract": "optimum"})
    with pytest.raises(UserError, match=r"exported elsewhere and keeps its weights in another form"):
        compensated(base, "fold")
    path = compensated(base, "bias")
    assert store.graph_sidecar(path).contract == "optimum"


@needs.rtx
@pytest.mark.slow
@pytest.mark.parametrize("form", ["linear", "rank4", "bias", "fold+rank4", "run"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_every_form_builds(model_type: str, form: str, workdir: Path) -> None:
    """In fp16 of the twin, as `build-engine` makes it, and in fp32."""
    folder = tiny.checkpoint(workdir / "graphs" / "m", model_type, num_hidden_layers=4)
    base = export.export_base(checkpoint.open_checkpoint(folder))
    skip = SkipSet((1, 2), (1, 2)) if form == "run" else SKIP
    name = "linear" if form == "run" else form
    graph = variants.compensate(base, skip, overlays.of_form(folder, skip, form, name), name)
    for path in (prerequisites.fp16_twin(graph), graph):
        keep = BuildSettings(targets=("sm80",), keep_precision=path == graph)
        record = store.engine_sidecar(build.build(path, keep))
        assert record.compensation == name and record.precision == store.variant(path).precision
        assert record.graph == FileDigest(file=path.name, sha256=store.sha256(path))
