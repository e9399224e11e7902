"""PyTorch on what `export` made of a GGUF is llama.cpp on the GGUF itself; a wrong tensor shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.evals.check import beside_llamacpp, check
from pipeline.evals.check.beside_llamacpp import LIMIT
from pipeline.graphs import export
from pipeline.models import checkpoint, demo
from pipeline.models.config import read_config
from pipeline.store import records
from pipeline.store.records import LlamaCppRecord
from pipeline.types import SkipSet
from tests import tiny, tiny_deci, tiny_gguf
from tests.tiny_gguf import Kind, Tiny

LLAMA3 = {**tiny.LLAMA3, "factor": 32.0}
PRUNED = SkipSet((1,), (2,))


def opened(folder: Path, model_type: str = "llama", how: Tiny | None = None, **changes: Any) -> Path:
    """graphs/m of a model that came from a GGUF."""
    source = tiny_gguf.source(folder / "s", model_type, **changes)
    if "rope_scaling" in changes:
        factors = tiny_gguf.rope_factors(dict(read_config(source)))
        how = Tiny(tensors={"rope_freqs.weight": factors})
    return checkpoint.resolve(str(tiny_gguf.write(source, folder / "m.gguf", how))).folder


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_scaling": LLAMA3, "max_position_embeddings": 1024}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
    ],
)
def test_llama_cpp_agrees(model_type: str, changes: dict[str, Any], workdir: Path) -> None:
    record = beside_llamacpp.compare(opened(workdir, model_type, **changes))
    assert isinstance(record, LlamaCppRecord) and record.passed and record.limit == LIMIT
    assert record.distance is not None and record.distance < 0.005


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_a_tensor_that_was_taken_wrongly_shows(name: str, workdir: Path) -> None:
    folder = opened(workdir, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    record = beside_llamacpp.compare(folder)
    assert isinstance(record, LlamaCppRecord) and not record.passed
    assert "is another model" in beside_llamacpp.failures(record)[0]


def test_check_says_so(workdir: Path) -> None:
    folder = opened(workdir, how=Tiny(kinds={"ffn_up": Kind.Q8_0}))
    graph = export.export_base(checkpoint.resolve("m"))
    outcome = check.check(graph)
    assert outcome.passed and outcome.record.llamacpp is not None and outcome.record.llamacpp.passed
    assert outcome.record.llamacpp.kinds == ("F32", "Q8_0")
    assert folder.name == "m"


@pytest.fixture
def pruned(workdir: Path) -> Path:
    """graphs/m of a GGUF of four layers, without attention 1 and MLP 2."""
    source = tiny_gguf.source(workdir / "s", num_hidden_layers=4)
    file = tiny_gguf.write(source, workdir / "m.gguf", tiny_deci.of(source, PRUNED))
    return checkpoint.resolve(str(file)).folder


def test_check_of_a_pruned_file_leaves_out_what_the_file_has_not(pruned: Path) -> None:
    variants = [PRUNED, PRUNED | SkipSet((3,))]
    graphs = [export.export(checkpoint.resolve("m"), "fp32", skip) for skip in variants]
    own, smaller = (check.check(graph).record for graph in graphs)
    assert own.passed and own.llamacpp is not None and own.llamacpp.passed
    assert own.llamacpp.distance is not None and own.llamacpp.distance < 0.005
    assert smaller.passed and smaller.llamacpp is None  # the file is another model


@pytest.mark.parametrize("fault", ["swapped layers", "one more is left out", "another is left out"])
def test_a_wrong_layer_of_a_pruned_file_shows(fault: str, pruned: Path) -> None:
    file = pruned / "model.safetensors"
    tensors = load_file(file)
    if fault == "one more is left out":
        config = json.loads((pruned / "config.json").read_text())
        (pruned / "config.json").write_text(json.dumps({**config, "drop_attn_list": [1, 2]}))
    else:
        other = {"swapped layers": {"2": "3", "3": "2"}, "another is left out": {"0": "1", "1": "0"}}[fault]
        part = "self_attn." if fault == "swapped layers" else ""
        renamed = {}
        for name, numbers in tensors.items():
            layer = name.split(".")[2] if name.startswith("model.layers.") and part in name else ""
            new = other.get(layer, layer)
            renamed[name.replace(f"layers.{layer}.", f"layers.{new}.")] = numbers
        save_file(renamed, file, metadata={"format": "pt"})
        if fault == "another is left out":
            config = json.loads((pruned / "config.json").read_text())
            (pruned / "config.json").write_text(json.dumps({**config, "drop_attn_list": [0]}))
    record = beside_llamacpp.compare(pruned)
    assert isinstance(record, LlamaCppRecord) and not record.passed


def test_check_says_that_llama_cpp_was_not_asked(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(workdir)
    graph = export.export_base(checkpoint.resolve("m"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "is_installed", lambda module: module != "xllamacpp")
        outcome = check.check(graph)
    said = records.read(records.CheckRecord, outcome.result)
    assert said.passed and said.llamacpp is None and said.llamacpp_missed is not None
    assert said.llamacpp_missed.startswith("xllamacpp is not installed: pip install")
    for again in (outcome, check.check(graph)):
        assert "; llama.cpp was not compared (xllamacpp is not" in again.summary().splitlines()[0]
    outcome = check.check(graph, force=True)
    assert outcome.record.llamacpp_missed is None and "llama.cpp" not in outcome.summary()


def test_what_came_from_no_gguf_is_not_compared(workdir: Path) -> None:
    source = tiny_gguf.source(workdir / "models" / "tiny")
    assert beside_llamacpp.compare(checkpoint.resolve(str(source)).folder) is None


@pytest.mark.slow
def test_the_demo_is_llama_cpps(demo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_root)
    record = beside_llamacpp.compare(Path("graphs") / demo.MODEL)
    assert isinstance(record, LlamaCppRecord) and record.passed
    assert record.distance is not None and record.distance < 0.1
