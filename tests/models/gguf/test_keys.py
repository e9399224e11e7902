"""A key that may change the model is used or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models.gguf import keys
from pipeline.types import UserError

FILE = Path("m.gguf")
REFUSED = {
    "llama.logit_scale": 8.0, "llama.residual_scale": 0.22, "llama.embedding_scale": 12.0,
    "llama.attention.scale": 0.0078125, "llama.expert_count": 8, "llama.expert_used_count": 2,
    "llama.attention.sliding_window": 1024, "llama.attention.layer_norm_epsilon": 1e-5,
    "llama.attention.clamp_kqv": 8.0, "llama.attention.max_alibi_bias": 8.0,
    "llama.attention.causal": False, "llama.use_parallel_residual": True,
    "llama.final_logit_softcapping": 30.0, "llama.attn_logit_softcapping": 50.0,
    "llama.rope.scaling.attn_factor": 1.2, "llama.rope.scaling.yarn_ext_factor": 0.5,
    "llama.rope.scaling.yarn_log_multiplier": 0.1, "llama.rope.scaling.alpha": 1000.0,
    "llama.rope.dimension_sections": [16, 24, 24, 0], "llama.rope.freq_base_swa": 1e4,
    "llama.attention.key_length_swa": 64, "llama.nextn_predict_layers": 1, "llama.pooling_type": 1,
    "llama.attention.temperature_length": 8192, "llama.tensor_data_layout": "other",
    "llama.something_new": 0, "llama.attention.sliding_window_pattern": [True, False],
    "tokenizer.ggml.add_sep_token": True, "tokenizer.ggml.remove_extra_whitespaces": True,
    "tokenizer.ggml.precompiled_charsmap": [1], "tokenizer.ggml.suppress_tokens": [3],
    "tokenizer.ggml.normalizer.lowercase": True, "tokenizer.ggml.something_new": 1,
    "tokenizer.ggml.token_type_count": 2, "tokenizer.something": 1,
    "general.type": "adapter", "adapter.type": "lora", "clip.has_vision_encoder": True,
}  # fmt: skip
SILENT = {
    "general.name": "x", "general.file_type": 7, "general.quantization_version": 2, "general.type": "model",
    "general.sampling.top_k": 20, "quantize.imatrix.file": "x.dat", "imatrix.datasets": ["x"],
    "mradermacher.quantize_version": "2",
    "llama.logit_scale": 1.0, "llama.residual_scale": 0.0, "llama.expert_count": 0,
    "llama.attention.sliding_window": 0, "llama.attention.causal": True, "llama.vocab_size": 300,
    "llama.tensor_data_layout": "Meta AI original pth", "llama.rope.scaling.finetuned": True,
    "llama.rope.dimension_sections": [0, 0, 0, 0], "llama.pooling_type": 0,
    "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.scores": [0.0],
    "tokenizer.ggml.fim_pre_token_id": 3, "tokenizer.chat_template.tool_use": "x",
    "tokenizer.chat_templates": ["tool_use"], "tokenizer.huggingface.json": "{}",
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_what_changes_the_model_and_is_not_understood_is_refused(key: str) -> None:
    fields: dict[str, Any] = {"llama.context_length": 4096, key: REFUSED[key]}
    with pytest.raises(UserError, match=rf"m\.gguf.*{key.replace('.', '[.]')}") as caught:
        keys.refuse_unknown(FILE, fields, "llama")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", SILENT)
def test_what_says_nothing_is_passed_over(key: str) -> None:
    keys.refuse_unknown(FILE, {key: SILENT[key]}, "llama")


def test_a_window_of_the_whole_context_means_nothing() -> None:
    fields = {"qwen2.context_length": 4096, "qwen2.attention.sliding_window": 4096}
    keys.refuse_unknown(FILE, fields, "qwen2")
    with pytest.raises(UserError, match="sliding_window is 4096"):
        keys.refuse_unknown(FILE, {**fields, "qwen2.context_length": 8192}, "qwen2")


@pytest.mark.parametrize("key", ["general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"])
@pytest.mark.parametrize("value", [[1, 2], 3])
def test_a_number_in_the_place_of_a_name_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"m\.gguf: {key} is .*, which is no name"):
        keys.refuse_no_names(tmp_path / "m.gguf", {key: value})
