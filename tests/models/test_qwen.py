"""The class of the first Qwen: held to transformers' Qwen2, to complex numbers and to its own cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Qwen2Config, Qwen2ForCausalLM

from pipeline.models import pretrained
from pipeline.models.config import read_config, refuse_foreign
from pipeline.models.qwen import QwenConfig, QwenForCausalLM
from pipeline.types import UserError
from tests import tiny

IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 96, (2, 40)))
QWEN_7B: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"], "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
    "attn_dropout_prob": 0.0, "bf16": False, "emb_dropout_prob": 0.0, "fp16": False, "fp32": False,
    "hidden_size": 4096, "intermediate_size": 22016, "initializer_range": 0.02, "kv_channels": 128,
    "layer_norm_epsilon": 1e-06, "max_position_embeddings": 8192, "model_type": "qwen", "no_bias": True,
    "num_attention_heads": 32, "num_hidden_layers": 32, "onnx_safe": None, "rotary_emb_base": 10000,
    "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": 8192, "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer", "transformers_version": "4.32.0", "use_cache": True,
    "use_dynamic_ntk": True, "use_flash_attn": "auto", "use_logn_attn": True, "vocab_size": 151936,
}  # fmt: skip
"""config.json of Qwen/Qwen-7B."""


def logits_of(model: Any, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(ids, **more).logits
    return logits


def as_qwen2(folder: Path) -> Any:
    """The same model as transformers' Qwen2: Llama with biases on q, k and v, which stand apart there."""
    config = Qwen2Config(
        vocab_size=96, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, rms_norm_eps=1e-6, rope_theta=10000.0,
    )  # fmt: skip
    names = {
        "transformer.wte": "model.embed_tokens", "transformer.h": "model.layers",
        "transformer.ln_f": "model.norm", "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj", "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj",
        "mlp.c_proj": "mlp.down_proj",
    }  # fmt: skip
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if "attn.c_attn" in name:
            for part, rows in zip("qkv", tensor.split(64), strict=True):
                weights[name.replace("attn.c_attn", f"self_attn.{part}_proj")] = rows
        else:
            weights[name] = tensor
    model = Qwen2ForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


def test_it_is_qwen2_with_other_names(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "qwen", rotary_emb_base=10000)
    truth = logits_of(as_qwen2(folder), IDS)
    assert (logits_of(pretrained.load(folder), IDS) - truth).abs().max() < 1e-5 * truth.abs().max()


def test_a_cache_and_padding_on_the_left_change_nothing(tmp_path: Path) -> None:
    model = pretrained.load(tiny.checkpoint(tmp_path, "qwen", rotary_pct=0.5))
    truth = logits_of(model, IDS)
    cache = DynamicCache()
    logits_of(model, IDS[:, :30], past_key_values=cache)
    rest = logits_of(model, IDS[:, 30:], past_key_values=cache)
    assert (rest - truth[:, 30:]).abs().max() < 1e-5 * truth.abs().max()
    cache = DynamicCache()  # the last token under a mask that is whole: how `bench` times decoding
    logits_of(model, IDS[:, :39], past_key_values=cache)
    whole = {"attention_mask": torch.zeros(2, 1, 1, 40), "position_ids": torch.full((2, 1), 39)}
    last = logits_of(model, IDS[:, 39:], past_key_values=cache, **whole)
    assert (last - truth[:, 39:]).abs().max() < 1e-5 * truth.abs().max()
    padded, mask = torch.nn.functional.pad(IDS, (5, 0)), torch.ones(2, 45, dtype=torch.int64)
    mask[:, :5] = 0
    shifted = logits_of(model, padded, attention_mask=mask)[:, 5:]  # angles are relative
    assert (shifted - truth).abs().max() < 1e-4 * truth.abs().max()
    last = logits_of(model, IDS, logits_to_keep=1)
    assert last.shape == (2, 1, 96) and torch.allclose(last, truth[:, -1:], atol=1e-5)


def test_rotation_is_a_complex_product(tmp_path: Path) -> None:
    """(x_j + i·x_{j + R/2}) · e^{iθp}, θ = base^(-2j / R), of a head's first R numbers; the rest stays."""
    model = pretrained.load(tiny.checkpoint(tmp_path, "qwen", rotary_pct=0.5, rotary_emb_base=777))
    layer, seen = model.transformer.h[0].attn, {}
    layer.c_attn.register_forward_hook(lambda _m, _i, output: seen.update(fused=output))
    cache = DynamicCache()
    logits_of(model, IDS, past_key_values=cache)
    before = seen["fused"][..., 64:128].reshape(2, 40, 4, 16).transpose(1, 2).numpy()
    after = cache.layers[0].keys.numpy()  # type: ignore[union-attr]
    angles = np.arange(40)[:, None] * 777.0 ** (-2 * np.arange(4) / 8)
    turned = (before[..., :4] + 1j * before[..., 4:8]) * np.exp(1j * angles)
    np.testing.assert_allclose(after[..., :8], np.concatenate([turned.real, turned.imag], -1), atol=1e-5)
    np.testing.assert_array_equal(after[..., 8:], before[..., 8:])


@pytest.mark.parametrize("key", ["use_dynamic_ntk", "use_logn_attn"])
def test_longer_texts_are_refused_where_attention_is_scaled(key: str, tmp_path: Path) -> None:
    other = {"use_dynamic_ntk": "use_logn_attn", "use_logn_attn": "use_dynamic_ntk"}[key]
    folder = tiny.checkpoint(tmp_path / "scaled", "qwen", seq_length=40, **{other: False})
    model = pretrained.load(folder)
    assert read_config(folder)["max_position_embeddings"] == 40
    logits_of(model, IDS)
    with pytest.raises(UserError, match="more than the 40 tokens"):
        logits_of(model, torch.cat([IDS, IDS[:, :1]], dim=1))
    plain = tiny.checkpoint(tmp_path / "plain", "qwen", seq_length=8, **{other: False, key: False})
    assert read_config(plain)["max_position_embeddings"] == 256
    assert logits_of(pretrained.load(plain), IDS).isfinite().all()


def test_the_published_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    ours = read_config(tmp_path)
    assert (ours["head_dim"], ours["num_key_value_heads"], ours["rms_norm_eps"]) == (128, 32, 1e-6)
    assert (ours["rope_theta"], ours["partial_rotary_factor"]) == (10000, 1.0)
    assert ours["max_position_embeddings"] == 8192
    (tmp_path / "config.json").write_text(json.dumps({**QWEN_7B, "seq_length": 2048}))
    assert read_config(tmp_path)["max_position_embeddings"] == 2048


def test_the_first_release_had_other_names(tmp_path: Path) -> None:
    """config.json of Qwen-7B-Chat, August 2023."""
    older = {
        "n_embd": 5120, "n_head": 40, "n_layer": 40, "n_positions": 6144, "ffn_hidden_size": 27392,
        "activation": "swiglu", "apply_residual_connection_post_layernorm": False, "pos_emb": "rotary",
        "layer_norm_epsilon": 1e-05, "seq_length": 2048, "padded_vocab_size": 151936,
    }  # fmt: skip
    replaced = {"hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"}
    kept = {k: v for k, v in QWEN_7B.items() if k not in {*replaced, "max_position_embeddings"}}
    (tmp_path / "config.json").write_text(json.dumps({**kept, **older}))
    ours = read_config(tmp_path)
    sizes = [ours[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")]
    assert sizes == [5120, 40, 40] and ours["intermediate_size"] == 27392 and ours["rms_norm_eps"] == 1e-5
    assert ours["max_position_embeddings"] == 2048 and "n_embd" not in ours
    refuse_foreign(ours, tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({**kept, **older, "hidden_size": 4096}))
    with pytest.raises(UserError, match="n_embd is 5120, and hidden_size is 4096"):
        read_config(tmp_path)


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "qwen")
    for name in ("configuration_qwen.py", "modeling_qwen.py"):
        (folder / name).write_text("raise SystemExit(9)")
    file = folder / "config.json"
    code = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWen"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": code}))
    assert isinstance(pretrained.load(folder), QwenForCausalLM)


def test_transformers_knows_the_classes() -> None:
    assert isinstance(AutoConfig.for_model("qwen"), QwenConfig)
    config = AutoConfig.for_model("qwen", **{**tiny.COMMON, **tiny.DIALECTS["qwen"]})
    assert isinstance(AutoModelForCausalLM.from_config(config), QwenForCausalLM)
