"""What runs before a command's own stage, and runs once."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from pipeline import store
from pipeline.cli import prerequisites
from pipeline.evals.score.settings import ScoreSettings
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet, UserError
from tests import tiny


def test_the_fp16_twin_is_cut_from_the_fp16_base(model: Path) -> None:
    graph = model / "mlp1.fp32.onnx"
    twin = prerequisites.fp16_twin(graph)
    assert twin == model / "mlp1.fp16.onnx" and (model / "base.fp16.onnx").is_file()
    assert store.variant(twin).skip == store.variant(graph).skip
    assert prerequisites.fp16_twin(twin) == twin


def test_the_fp16_twin_of_a_variant_without_a_base(workdir: Path) -> None:
    """LLM-Drop may leave no weights of what it drops: there is no base to cut from."""
    source = tiny.checkpoint(workdir / "models" / "tiny")
    weights = load_file(source / "model.safetensors")
    kept = {name: t for name, t in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    graph = export.export(checkpoint.resolve(str(source)), "fp32", SkipSet((), (1,)))
    twin = prerequisites.fp16_twin(graph)
    assert (graph.name, twin.name) == ("mlp1.fp32.onnx", "mlp1.fp16.onnx")
    assert store.variant(twin).skip == SkipSet((), (1,)) and not graph.with_name("base.fp16.onnx").exists()


def test_what_is_not_checked_is_checked_first_with_its_base(model: Path) -> None:
    base, graph = model / "base.fp32.onnx", model / "mlp1.fp32.onnx"
    assert prerequisites.checked([graph], unchecked=True) == [graph]
    assert not store.check_passed(graph)
    assert prerequisites.checked([graph], unchecked=False) == [graph]
    assert store.check_passed(graph) and store.check_passed(base)
    before = store.result_of(graph, "check").stat().st_mtime_ns
    prerequisites.checked([graph], unchecked=False)
    assert store.result_of(graph, "check").stat().st_mtime_ns == before


def test_only_checked_graphs_are_merged(model: Path) -> None:
    graphs = [model / "base.fp32.onnx", model / "mlp1.fp32.onnx"]
    with pytest.raises(UserError, match="has passed no check"):
        prerequisites.merged(graphs, unchecked=False)
    with pytest.raises(UserError, match=r"--together takes graphs \(\.onnx\), and x\.plan is none"):
        prerequisites.merged([Path("x.plan")], unchecked=True)
    for graph in graphs:
        tiny.passed(graph)
    merged = prerequisites.merged(graphs, unchecked=False)
    assert merged == prerequisites.merged(graphs, unchecked=True) and merged.name.startswith("merged-")


def test_optimums_twin_leaves_out_the_same(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.graphs import export

    monkeypatch.setattr(export, "optimum_base", lambda folder: folder / "base.fp32.onnx")
    graph = model / "mlp1.fp32.onnx"
    twins = prerequisites.optimum_twins([graph])
    assert list(twins) == [graph] and store.variant(twins[graph]).skip == SkipSet((), (1,))


def test_an_adapter_is_merged_into_its_variants_graph(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.calib import adapters

    calls = []
    monkeypatch.setattr(adapters, "merge", lambda *arguments: calls.append(arguments[1:]) or Path("tensors"))
    monkeypatch.setattr(variants, "graft", lambda *arguments: calls.append(arguments) or Path("healed"))
    graph = model / "block1.fp32.onnx"
    assert prerequisites.healed(graph, "heal") == Path("healed")
    assert calls == [(store.variant(graph), "heal"), (graph, Path("tensors"), "heal")]


def test_scores_that_exist_are_read_without_running_any(model: Path) -> None:
    assert prerequisites.scored([model / "base.fp32.onnx"], None, ScoreSettings(unchecked=True)) == []
