"""Keys that an architecture has not: refused where they change the model, named where nobody knows them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pipeline.models import config
from pipeline.types import UserError
from tests.models.config import FILE, Refused, read

FOREIGN: list[Refused] = [
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq, 4 bits\)"),
    ("llama", {"quantization": {"bits": 4, "group_size": 64}}, "quantised"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"sliding_window": 64}, "sliding_window is 64"),
    ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ("phi3", {"mlp_bias": True}, "mlp_bias is True"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("llama", {"num_experts": 8}, "num_experts is 8"),
    ("mistral", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("llama", {"moe_intermediate_size": 64}, "moe_intermediate_size is 64"),
    ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ("llama", {"logits_scaling": 8.0}, "logits_scaling is 8.0"),
    ("llama", {"logit_scale": 0.0625}, "logit_scale is 0.0625"),
    ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
    ("llama", {"scale_emb": 12}, "scale_emb is 12"),
    ("llama", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
    ("llama", {"is_causal": False}, "is_causal is False"),
    ("llama", {"use_qk_norm": True}, "use_qk_norm is True"),
    ("llama", {"clip_qkv": 8}, "clip_qkv is 8"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("llama", {"lm_head_bias": True}, "lm_head_bias is True"),
    ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers is"),
    ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern is 3"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads is"),
]


@pytest.mark.parametrize(("model_type", "keys", "why"), FOREIGN)
def test_what_is_not_authored_is_refused_by_name(model_type: str, keys: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        config.refuse_foreign(read(model_type, **keys), FILE)


PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM2": {"model_type": "llama", "is_llama_config": True, "rope_interleaved": False,
                "pretraining_tp": 1, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "Vicuna": {"model_type": "llama", "_name_or_path": "x", "max_sequence_length": 2048, "pad_token_id": 0},
    "Phi-4-mini": {"model_type": "phi3", "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False,
                   "mlp_bias": False, "attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
                   "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "sliding_window": 262144},
    "Gemma 2": {"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid",
                "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 144},
    "Gemma 3 1B": {"model_type": "gemma3_text", "sliding_window_pattern": 6, "cache_implementation": "hybrid",
                   "sliding_window": 512, "attn_logit_softcapping": None, "query_pre_attn_scalar": 256},
    "Gemma 3 270M": {"model_type": "gemma3_text", "_sliding_window_pattern": 6, "sliding_window": 512,
                     "use_bidirectional_attention": None, "rope_scaling": None},
    "Phi-2": {"model_type": "phi", "qk_layernorm": False, "embd_pdrop": 0.0, "resid_pdrop": 0.1},
    "Qwen2.5": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768,
                "max_window_layers": 21, "use_mrope": False, "attention_bias": True},
    "unsloth": {"model_type": "llama", "unsloth_fixed": True, "unsloth_version": "2025.1", "use_cache": True},
    "Yarn-Mistral": {"model_type": "mistral", "rope_scaling": {"type": "yarn", "factor": 8.0,
                     "finetuned": True, "original_max_position_embeddings": 8192}},
    "LLM-Drop": {"model_type": "mistral", "drop_attn_list": [3, 1], "drop_mlp_list": [2],
                 "auto_map": {"AutoConfig": "x.Y"}},
    "a window beyond the context": {"model_type": "llama", "sliding_window": 4096},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_pass_in_silence(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config.refuse_foreign(config.normalised(PUBLISHED[name], FILE), FILE)
    assert not caplog.records


def test_a_key_that_nobody_knows_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config.refuse_foreign(read(colour="blue", shade=False), FILE)
    assert "colour" in caplog.text and "shade" not in caplog.text
