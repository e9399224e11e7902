"""One artefact in full, and which engines run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.graphs import merge, variants
from pipeline.types import SkipSet, UserError
from tests import overlays, tiny
from tests.commands import run


def test_a_variant_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = model / "block1.fp32.onnx"
    shown = json.loads(run(capsys, "show", graph, "--json"))
    assert shown["path"] == str(graph) and shown["variant"] == "block1" and shown["check"] == "not passed yet"
    assert shown["left_out"] == {"attention": [1], "mlp": [1], "of_layers": 2}
    base, cut = shown["costs"]["base"], shown["costs"]["variant"]
    assert list(cut) == ["parameters", "weight_bytes", "flops_at_50", "flops_at_100", "cache_bytes_per_token"]
    assert cut["weight_bytes"] == 4 * cut["parameters"] < base["weight_bytes"]
    assert 2 * cut["cache_bytes_per_token"] == base["cache_bytes_per_token"]
    assert shown["indices"] == {"drop_attn_list": [1], "drop_mlp_list": [1]}
    runs = {engine["name"]: engine["runs"] for engine in shown["engines"]}
    assert set(runs) > {"ONNX Runtime", "Triton", "llama.cpp", "vLLM", "mlx-lm"} and all(runs.values())
    assert shown["disk_bytes"] == graph.stat().st_size
    assert shown["sidecar"] == store.sidecar(graph).plain()


def test_a_variant_for_a_person(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = model / "mlp1.fp32.onnx"
    tiny.passed(graph)
    words = run(capsys, "show", graph)
    assert words.splitlines()[:2] == [
        f"{graph}: mlp1, fp32, check passed",
        "left out    attention none, MLP [1] of 2 layers",
    ]
    assert "pipeline ship GRAPH --to gguf FILE.gguf  llama.cpp: llama-cli -m FILE.gguf (as its arch" in words
    assert (
        "not in transformers, vLLM, SGLang, TensorRT-LLM, mlx-lm (head_dim is 32, and mlx-lm takes 64 / 4"
        in words
    )
    assert "indices     {'drop_attn_list': [], 'drop_mlp_list': [1]}" in words
    cache = next(line for line in words.splitlines() if line.startswith("cache_bytes_per_token"))
    assert "100.0% of base's" in cache and "build       " not in words
    base = run(capsys, "show", model / "base.fp32.onnx")
    assert "pipeline ship GRAPH --to hf DIR          transformers: AutoModel" in base and "not in" not in base


def test_what_stands_where(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A matrix in the place of mlp1 and of attn1, each 64² + 64 numbers; and what was folded."""
    skip = SkipSet((1,), (1,))
    overlay = overlays.of_form(model, skip, "linear")
    graph = variants.compensate(model / "base.fp32.onnx", skip, overlay, "linear")
    words = run(capsys, "show", graph).splitlines()
    assert words[0] == f"{graph}: block1~linear, fp32, check not passed yet"
    assert words[2] == "compensation  linear: attn 1; mlp 1 (0.01 M parameters)"
    shown = json.loads(run(capsys, "show", graph, "--json"))
    assert shown["compensation"] == {
        "maps": [{"form": "linear", "places": ["attn1", "mlp1"], "parameters": 2 * (64 * 64 + 64)}],
        "folded": [],
    }
    matrix = variants.compensate(model / "base.fp32.onnx", skip, overlay, "matrix")
    assert run(capsys, "show", matrix).splitlines()[2].startswith("compensation  matrix: attn 1; mlp 1 (")
    cut, costs = model / "block1.fp32.onnx", shown["costs"]["variant"]
    none = json.loads(run(capsys, "show", cut, "--json"))["costs"]["variant"]
    assert costs["parameters"] - none["parameters"] == 2 * (64 * 64 + 64)
    overlay = overlays.of_form(model, skip, "fold")
    graph = variants.compensate(model / "base.fp32.onnx", skip, overlay, "fold")
    words = run(capsys, "show", graph).splitlines()
    assert words[2].startswith("compensation  bias: attn 1; mlp 1 (")
    names = ["model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"]
    assert words[3] == f"folded      into 2 weights: {', '.join(names)}"
    assert json.loads(run(capsys, "show", graph, "--json"))["compensation"]["folded"] == names


def test_a_merged_graph(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = merge.merge([model / "base.fp32.onnx", model / "mlp1.fp32.onnx"])
    assert run(capsys, "show", path) == f"{path}: merged from base, mlp1\n"
    shown = json.loads(run(capsys, "show", path, "--json"))
    assert shown == {"path": str(path), "sidecar": store.sidecar(path).plain()}


def test_what_is_no_artefact(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="`pipeline list` shows what does"):
        run(capsys, "show", "none.onnx")
