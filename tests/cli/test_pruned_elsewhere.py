"""Variants that were made elsewhere: a `deci` GGUF and a `nemotron-nas` folder, exported, checked, built.

The right value is transformers' model of the whole checkpoint, with modules of nought for what is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import store
from pipeline.models.named_configs import find
from pipeline.types import SkipSet, UserError
from tests import tiny, tiny_deci, tiny_gguf, tiny_nas
from tests.cli.test_dropped import edited, error, truth
from tests.commands import run

SKIP = SkipSet((1,), (2,))
NAME = "attn1+mlp2"


@pytest.fixture
def whole(workdir: Path) -> Path:
    """A whole model that either form can say."""
    return tiny_nas.whole(workdir / "whole", attention_bias=True)


def made(form: str, whole: Path, skip: SkipSet = SKIP) -> Path:
    """The variant, as another tool gives it."""
    if form == "gguf":
        return tiny_gguf.write(whole, whole.parent / "a.gguf", tiny_deci.of(whole, skip))
    return tiny_nas.written(whole, whole.parent / "hf" / "a", skip)


@pytest.mark.parametrize("form", ["gguf", "hf"])
@pytest.mark.parametrize("name", [NAME, "attn0", "mlp3", "block1-2", "block0_3+attn1"])
def test_export_writes_the_variant(
    form: str, name: str, whole: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    skip = SkipSet.parse(name)
    source = made(form, whole, skip)
    graph = Path(run(capsys, "export", source).strip().splitlines()[-1])
    assert graph == Path("graphs/a") / f"{skip.name}.fp32.onnx"
    assert error(graph, truth(whole, skip)) < 1e-4 < 0.01 < error(graph, truth(whole, SkipSet()))
    record = store.graph_sidecar(graph)
    assert record.base is None and record.num_layers == 4
    assert f"drops {skip.name}, and so does the graph; its weights hold no base" in caplog.text
    assert not (graph.parent / "configuration_decilm.py").exists()
    assert find(str(source)).dropped == skip


@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_more_may_go_and_nothing_comes_back(
    form: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, more = made(form, whole), "attn1-2+mlp2"
    graph = Path(run(capsys, "export", source, "--skip", more).strip())
    assert graph.name == f"{more}.fp32.onnx" and error(graph, truth(whole, SkipSet.parse(more))) < 1e-4
    for skip in ("base", "attn1", "mlp0"):
        with pytest.raises(UserError, match=r"weights of .* are gone .*`pipeline export .* --skip attn.*mlp"):
            run(capsys, "export", source, "--skip", skip)


@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_what_needs_a_base_says_so(form: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = run(capsys, "export", made(form, whole)).strip().splitlines()[-1]
    with pytest.raises(UserError, match="has no base: the weights of what it leaves out are gone"):
        run(capsys, "compensate", graph, "--with", "linear")
    for command in (("calibrate", "a"), ("heal", graph)):
        with pytest.raises(UserError, match=r"weights of attn1\+mlp2 are gone .* the whole model"):
            run(capsys, *command)


def test_graphs_beside_a_folder(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = made("hf", whole)
    graph = Path(run(capsys, "export", source, "--in-place").strip().splitlines()[-1])
    assert graph == source / f"{NAME}.fp32.onnx" and error(graph, truth(whole, SKIP)) < 1e-4
    assert "passed" in run(capsys, "check", graph)


@pytest.mark.parametrize("form", ["gguf", "hf"])
@pytest.mark.parametrize("rope", ["version 4", "version 5"])
def test_the_rope_of_llama_3_arrives(
    form: str, rope: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny_nas.whole(workdir / "whole", **tiny_nas.LLAMA3)
    how = tiny_deci.of(whole, SKIP)
    if form == "gguf":
        config: dict[str, Any] = {"rope_scaling": tiny.LLAMA3, "rope_theta": 10000.0, "head_dim": 16}
        how.tensors["rope_freqs.weight"] = tiny_gguf.rope_factors(config)
        source = tiny_gguf.write(whole, workdir / "a.gguf", how)
    elif rope == "version 4":
        old = {"rope_parameters": None, "rope_scaling": tiny.LLAMA3, "rope_theta": 10000.0}
        source = tiny_nas.written(whole, workdir / "hf" / "a", SKIP, **old)
    else:
        new = {
            "rope_parameters": {**tiny.LLAMA3, "rope_theta": 10000.0},
            "rope_theta": None,
            "rope_scaling": None,
        }
        source = tiny_nas.written(whole, workdir / "hf" / "a", SKIP, **new)
    graph = Path(run(capsys, "export", source).strip().splitlines()[-1])
    assert error(graph, truth(whole, SKIP)) < 1e-4
    assert "passed" in run(capsys, "check", graph)


def test_a_width_that_the_tensors_have_not_is_refused(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made("hf", whole)
    edited(source, block_configs=tiny_nas.blocks(SKIP, 4, ffn_mult=9.0))
    with pytest.raises(UserError, match=r"weight is \[256, 64\], but config\.json implies \[512, 64\]"):
        run(capsys, "export", source)
    assert not Path("graphs").exists()


def test_weights_of_what_is_left_out_may_be_there(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then there is a base, as of LLM-Drop's models."""
    source = tiny_nas.written(whole, whole.parent / "hf" / "a", SkipSet())
    edited(source, block_configs=tiny_nas.blocks(SKIP, 4))
    graph = Path(run(capsys, "export", source).strip().splitlines()[-1])
    assert graph.name == f"{NAME}.fp32.onnx" and error(graph, truth(whole, SKIP)) < 1e-4
    base = graph.with_name("base.fp32.onnx")
    assert error(base, truth(whole, SkipSet())) < 1e-4 and "passed" in run(capsys, "check", graph, base)


def test_what_transformers_skips_in_a_plain_config(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {"1": {"skip": ["attention"]}, "2": {"skip": ["mlp"]}}
    edited(whole, per_layer_config=layers, skip_pipeline={"variant": NAME, "num_layers": 4})
    graph = Path(run(capsys, "export", whole).strip())
    edited(whole, per_layer_config=None)
    assert graph.name == f"{NAME}.fp32.onnx" and error(graph, truth(whole, SKIP)) < 1e-4
    assert "passed" in run(capsys, "check", graph)


@pytest.mark.slow  # builds an engine, measures, generates
@pytest.mark.rtx
@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_everything_downstream_works_without_a_base(
    form: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = Path(run(capsys, "export", made(form, whole)).strip().splitlines()[-1])
    assert "passed" in run(capsys, "check")
    (row,) = json.loads(run(capsys, "bench", graph, "--sequences", 3, "--lengths", "20", "--json"))["rows"]
    assert row["artefact"] == str(graph)
    assert run(capsys, "generate", graph, "The", "--max-tokens", 3)
    assert NAME in run(capsys, "list") and "left out    attention [1], MLP [2]" in run(capsys, "show", graph)
    plan = Path(run(capsys, "build-engine", graph).strip().splitlines()[-1])
    assert plan.suffix == ".plan" and plan.parent.name == NAME
    twin = graph.with_name(f"{NAME}.fp16.onnx")
    assert store.graph_sidecar(twin).base is None
    assert np.isfinite(error(twin, truth(whole, SKIP)))
