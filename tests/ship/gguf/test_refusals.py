"""What llama.cpp has no form for is refused by name, by config, skip set and maps alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.compensation import MapPlace
from pipeline.models.config import normalised
from pipeline.models.quantisation.names import requested
from pipeline.ship.gguf import ship
from pipeline.ship.gguf.refusals import refusal
from pipeline.types import SkipSet, UserError
from tests import tiny
from tests.ship.gguf import projects

GEMMA = {"num_hidden_layers": 6, "query_pre_attn_scalar": 32}


def config(model_type: str, **changes: Any) -> Any:
    whole = {**tiny.COMMON, **tiny.DIALECTS[model_type], "num_hidden_layers": 4, **changes}
    return normalised({"model_type": model_type, **whole}, Path("config.json"))


@pytest.mark.parametrize(
    ("model_type", "name", "changes", "reason"),
    [
        ("olmo2", "block1", {}, "--to hf, and convert that with llama.cpp's convert_hf_to_gguf.py"),
        ("phi", "base", {}, "GGUF files of phi are not written"),
        ("qwen3", "attn1", {}, "sublayers of qwen3 cannot be skipped alone"),
        ("gemma2", "mlp1", GEMMA, "sublayers of gemma2 cannot"),
        ("phi3", "attn1", {}, "sublayers of phi3 cannot"),
        ("qwen3", "block1", {"attention_bias": True}, "llama.cpp's qwen3 has no such biases"),
        ("llama", "attn0-3", {}, "every attention is skipped"),
        ("llama", "block0-3", {}, "every layer is skipped"),
        ("llama", "block1", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and llama.cpp's llama has silu"),
        (
            "llama",
            "base",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope scaling 'dynamic'",
        ),
        ("llama", "base", {"rope_scaling": tiny.LLAMA3}, None),
        ("qwen2", "base", {"rope_scaling": tiny.LLAMA3}, "needs a table, and llama.cpp's qwen2 reads none"),
        ("qwen3", "block1", {"rope_scaling": tiny.LLAMA3}, "needs a table, and llama.cpp's qwen3 reads none"),
        ("qwen2", "attn1", {"rope_scaling": tiny.LLAMA3}, None),  # deci reads it
        ("qwen2", "block1", {"head_dim": 32}, "4 heads of 32 are not hidden_size 64"),
        ("qwen2", "attn1", {"head_dim": 32}, None),
        ("qwen3", "block1", {"head_dim": 32}, None),
        ("gemma2", "base", {**GEMMA, "tie_word_embeddings": False}, "its head is no copy of the embedding"),
        (
            "gemma3_text",
            "base",
            {**GEMMA, "rope_scaling": tiny.LLAMA3},
            "rope scaling 'llama3' of gemma3_text",
        ),
        ("gemma2", "block1", GEMMA, None),
        ("gemma2", "block0_2_4", GEMMA, "no layer with a window is left"),
        ("gemma2", "base", {**GEMMA, "attn_logit_softcapping": None}, "attn_logit_softcapping would be 50.0"),
        ("gemma2", "base", {**GEMMA, "query_pre_attn_scalar": 24}, "query_pre_attn_scalar would be 32"),
        (
            "gemma2",
            "block0-1",
            {**GEMMA, "num_hidden_layers": 46, "query_pre_attn_scalar": 16},
            "query_pre_attn_scalar",
        ),
        ("gemma2", "base", {**GEMMA, "num_hidden_layers": 46, "query_pre_attn_scalar": 16}, None),
    ],
)
def test_the_reason_is_said(model_type: str, name: str, changes: dict[str, Any], reason: str | None) -> None:
    said = refusal(config(model_type, **changes), SkipSet.parse(name))
    assert said is None if reason is None else said is not None and reason in said


def test_a_run_of_blocks_reads_the_stream_without_a_norm() -> None:
    said = refusal(config("llama"), SkipSet.parse("block1-2"), [MapPlace(1, 2, "block")])
    assert said is not None and "the map of layers 1-2 reads the stream without a norm" in said
    assert refusal(config("llama"), SkipSet.parse("block1"), [MapPlace(1, 1, "attn")]) is None
    said = refusal(config("llama"), SkipSet.parse("block0-3"), [MapPlace(1, 1, "attn")])
    assert said is not None and "every attention is skipped" in said


@pytest.mark.parametrize(
    ("model_type", "precision", "reason"),
    [
        ("llama", "int4-b32-fp32", None),
        ("qwen3", "int8-b32-gptq-fp16", None),
        ("llama", "fp16", None),
        (
            "llama",
            "int4-fp32",
            "of 64, .* 4 bits have blocks of 32; .* --precision int4 --block-size 32$",
        ),
        ("llama", "int8-b128-gptq-fp16", "of 128, .* 8 bits .* int8 --block-size 32 --method gptq$"),
        ("gemma2", "int4-b32-gptq-fp32", "gemma2 has none; export it with --precision int4-b32-gptq-fp16, "),
        ("gemma2", "int8-b32-fp16", "gemma2 has none; ship its fp32 twin with --type q8_0$"),
        ("gemma2", "int4-b32-fp16", None),
        ("olmo2", "int4-fp32", "GGUF files of olmo2 are not written here"),
    ],
)
def test_blocks_that_llama_cpp_has_not(model_type: str, precision: str, reason: str | None) -> None:
    (wanted,) = requested(precision)
    changes = GEMMA if model_type == "gemma2" else {}
    said = refusal(config(model_type, **changes), SkipSet(), (), wanted)
    assert said is None if reason is None else said is not None and re.search(reason, said)


def test_ship_says_the_same(workdir: Path) -> None:
    graph = projects.cut(projects.base(workdir, "qwen3"), "attn1")
    said = refusal(config("qwen3"), SkipSet.parse("attn1"))
    with pytest.raises(UserError) as error:
        ship.ship(graph, workdir / "m.gguf", unchecked=True)
    assert str(error.value) == f"{graph} cannot be written as GGUF: {said}"
    assert not (workdir / "m.gguf").exists()


def test_a_model_that_is_not_known_here_is_refused() -> None:
    said = refusal({"model_type": "gpt2", "n_layer": 12}, SkipSet.parse("base"))
    assert said is not None and said.startswith("GGUF files of gpt2 are not written here")


def test_llama_2_can_be_written() -> None:
    known = normalised({"model_type": "llama"}, Path("config.json"))  # the class's own numbers are its
    for name in ("base", "block21-31", "attn21-31", "mlp0", "attn0_20-28+mlp25-31"):
        assert refusal(known, SkipSet.parse(name)) is None
