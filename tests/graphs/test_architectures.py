"""Every architecture's authored graph against transformers: prefill, decode, left padding, all dtypes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engines import opening
from pipeline.graphs import architectures, export
from pipeline.models import checkpoint
from pipeline.types import UserError
from tests import tiny

LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0, 3, 4, 5, 6, 7, 8, 9],
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (name, "fp32", {}) for name in tiny.DIALECTS},
    "llama-fp16": ("llama", "fp16", {}),
    "llama-bf16": ("llama", "bf16", {}),
    "llama-tied": ("llama", "fp32", {"tie_word_embeddings": True}),
    "llama-bias": ("llama", "fp32", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope-llama3": ("llama", "fp32", {"rope_scaling": tiny.LLAMA3}),
    "llama-rope-linear": ("llama", "fp32", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama-gelu": ("llama", "fp32", {"hidden_act": "gelu"}),
    "llama-sharded": ("llama", "fp32", {"max_shard_size": "60KB"}),
    "qwen2-tied-bf16": ("qwen2", "bf16", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        "fp32",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3-window": (
        "qwen3",
        "fp32",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "phi3-longrope": (
        "phi3",
        "fp32",
        {"rope_scaling": LONG, "original_max_position_embeddings": 16, "sliding_window": None},
    ),
    "phi3-partial": ("phi3", "fp32", {"partial_rotary_factor": 0.5}),
    "gpt_neox-sequential": ("gpt_neox", "fp32", {"use_parallel_residual": False}),
    "gpt_neox-no-bias": ("gpt_neox", "fp32", {"attention_bias": False}),
    "gpt_neox-whole-rotary": ("gpt_neox", "bf16", {"rotary_pct": 1.0, "rotary_emb_base": 500000}),
    "gpt_neox-linear": ("gpt_neox", "fp32", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "gpt_neox-tied-gelu_new": ("gpt_neox", "fp16", {"tie_word_embeddings": True, "hidden_act": "gelu_new"}),
    "gemma2-bf16-untied": ("gemma2", "bf16", {"tie_word_embeddings": False}),
    "gemma2-uncapped": (
        "gemma2",
        "fp16",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    ),
    "gemma3-bf16-pattern": ("gemma3_text", "bf16", {"layer_types": None, "num_hidden_layers": 6}),
    "gemma3-linear-capped": (
        "gemma3_text",
        "fp32",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 0.5},
    ),
    "gemma3-untied": ("gemma3_text", "fp16", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "qwen-tied-bf16": ("qwen", "bf16", {"tie_word_embeddings": True}),
    "qwen-partial-rotary": ("qwen", "fp16", {"rotary_pct": 0.5, "rotary_emb_base": 500000}),
    "olmo2-bf16-bias": ("olmo2", "bf16", {"attention_bias": True, "tie_word_embeddings": True}),
    "olmo2-fp16-wide-heads": ("olmo2", "fp16", {"head_dim": 32, "num_key_value_heads": 1}),
    "olmo2-linear": ("olmo2", "fp32", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "granite-class": (
        "granite",
        "fp32",
        {
            "embedding_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
    ),
    "granite-bf16-tied": ("granite", "bf16", {"tie_word_embeddings": True}),
    "granite-fp16-bias": ("granite", "fp16", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "smollm3-bf16-untied": ("smollm3", "bf16", {"tie_word_embeddings": False, "num_hidden_layers": 4}),
    "smollm3-no-rope": ("smollm3", "fp32", {"no_rope_layers": [0, 0]}),
    "smollm3-window": (
        "smollm3",
        "fp16",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "no_rope_layers": [0, 1, 0, 1],
            "num_hidden_layers": 3,
        },
    ),
    "smollm3-layer-types": (
        "smollm3",
        "fp32",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "no_rope_layer_interval": 1,
            "layer_types": ["sliding_attention", "full_attention"],
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "phi-gelu": ("phi", "fp16", {"hidden_act": "gelu"}),
    "phi-tied": ("phi", "fp32", {"tie_word_embeddings": True}),
}


def truth(folder: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """transformers' logits [B, T, V] in float32, no cache."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        return model(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
            use_cache=False,
        ).logits.numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_equals_transformers(case: str, precision: str, workdir: Path) -> None:
    model_type, dtype, changes = CASES[case]
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type, dtype, **changes)))
    path = export.export_base(base_model, precision)
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(str(path), load_external_data=False)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)

    rng = np.random.default_rng(0)
    ids = rng.integers(3, 96, (3, 24))
    mask = np.ones_like(ids)
    mask[0, :9] = mask[1, :3] = 0  # left padding; decode crosses the windows
    expected = truth(base_model.folder, ids, mask)
    scale = np.abs(expected).max()
    limit = 1e-5 if precision == "fp32" else 1e-2
    with opening.open_runner(path) as runner:
        every = np.broadcast_to(np.arange(20), (3, 20))
        logits, cache = runner.forward(ids[:, :20], attention_mask=mask[:, :20], logits_positions=every)
        seen = mask[:, :20] == 1
        if (
            case != "phi3-longrope"
        ):  # its frequencies change with the batch's longest row, so a shorter prefill differs
            assert np.abs(logits - expected[:, :20])[seen].max() < limit * scale
        for t in range(20, 24):
            logits, cache = runner.forward(ids[:, t : t + 1], cache, attention_mask=mask[:, : t + 1])
            if case != "phi3-longrope":
                assert np.abs(logits[:, 0] - expected[:, t]).max() < limit * scale


def test_longrope_switches_where_transformers_does(workdir: Path) -> None:
    """Up to the original context the short factors hold, beyond it the long ones."""
    model_type, dtype, changes = CASES["phi3-longrope"]
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type, dtype, **changes)))
    with opening.open_runner(export.export_base(base_model)) as runner:
        for length in (15, 16, 17, 24):
            ids = np.random.default_rng(length).integers(3, 96, (1, length))
            expected = truth(base_model.folder, ids, np.ones_like(ids))
            logits, _ = runner.forward(ids)
            assert np.abs(logits[:, 0] - expected[:, -1]).max() < 1e-5 * np.abs(expected).max(), length


def test_weights_stay_in_the_checkpoint(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "tiny", "llama", "bf16", max_shard_size="60KB")
    base_model = checkpoint.resolve(str(source))
    before = {file.name: file.read_bytes() for file in base_model.files}
    path = export.export_base(base_model)
    graph = onnx.load(str(path), load_external_data=False).graph
    inside = sum(len(t.raw_data) for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
    outside = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert len(base_model.files) > 1 and outside == set(base_model.tensors) and inside < 2000
    assert {file.name: file.read_bytes() for file in base_model.files} == before


def test_unsupported_architecture_is_refused_by_name(workdir: Path) -> None:
    folder = tiny.checkpoint(workdir / "tiny")
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"llama"', '"gemma9"'))
    with pytest.raises(UserError, match=r"'gemma9' is not authored here \(.*llama, .*phi3.*--from-onnx"):
        export.export_base(checkpoint.resolve(str(folder)))
    assert not list(workdir.glob("graphs/*/*.onnx"))


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "relu"}, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}]
)
def test_what_is_not_authored_is_refused(changes: dict[str, Any], workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", "llama", **changes)))
    with pytest.raises(UserError, match="not authored"):
        export.export_base(base_model)


def test_a_model_with_a_vision_part_is_refused_and_its_text_model_named(workdir: Path) -> None:
    folder = tiny.checkpoint(workdir / "tiny", "gemma3_text")
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'gemma3' is not authored .*the text model alone, 'gemma3_text'"):
        export.export_base(checkpoint.resolve(str(folder)))


def test_registry_is_the_folder() -> None:
    files = Path(architectures.__file__).parent.glob("[!_]*.py")
    assert architectures.supported() == sorted(file.stem for file in files)
    assert set(architectures.supported()) <= set(tiny.DIALECTS)  # every one of them is held to transformers
