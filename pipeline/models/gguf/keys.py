"""The keys of a GGUF file: which are used, which say nothing about what the model computes.

Every other key under the architecture's name, `tokenizer.`, `split.` or another format's prefix is refused
by name, unless it has the value that means nothing. Source: llama.cpp's `llama-arch.cpp` and gguf-py's
`constants.py`, with what `conversion/` writes for these architectures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.models.gguf import vocabulary
from pipeline.models.gguf.dialects import DIALECTS
from pipeline.types import UserError

_USED = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
"""Of every architecture, without its name: `sizes` and `rope` read them."""
_SILENT = {"rope.scaling.finetuned"}
"""Of an architecture: they say nothing about what it computes."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),  # how the rows of q and k lie in every `llama` file
    "pooling_type": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attention.output_scale": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_weights_norm": (False,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1,),
    "attention.temperature_scale": (0, 1),
}
"""Of an architecture: the values that mean nothing, of llama.cpp's own defaults."""
_NOTHING_AT_NOUGHT = {
    "expert_count", "expert_used_count", "expert_shared_count", "expert_group_count",
    "expert_group_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length",
    "expert_gating_func", "leading_dense_block_count", "moe_every_n_layers", "interleave_moe_layer_step",
    "nextn_predict_layers", "attn_logit_softcapping", "final_logit_softcapping",
    "router_logit_softcapping", "attention.clamp_kqv", "attention.max_alibi_bias",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.scale",
    "attention.temperature_length", "attention.shared_kv_layers", "rope.dimension_sections",
    "rope.scaling.yarn_log_multiplier", "rope.scaling.alpha", "n_deepstack_layers",
}  # fmt: skip
"""Of an architecture: parts that it has not, where the number is 0 or the list of noughts."""
_TOKENIZER_USED = {
    "model", "pre", "tokens", "token_type", "merges", "add_bos_token", "add_eos_token",
    "bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id",
}  # fmt: skip
"""After `tokenizer.ggml.`: `tokenizer` reads them."""
_TOKENIZER_SILENT = re.compile(
    r"scores|(seperator|mask|cls)_token_id|fim_(pre|suf|mid|pad|rep|sep)_token_id"
    r"|(prefix|suffix|middle)_token_id"
)
"""After `tokenizer.ggml.`: sentencepiece's alone reads the scores; the others are tokens for infilling and
encoders."""
_TOKENIZER_OFF = {
    "add_sep_token", "add_space_prefix", "remove_extra_whitespaces", "suppress_tokens",
    "normalizer.lowercase", "normalizer.strip_accents",
}  # fmt: skip
"""After `tokenizer.ggml.`: false or empty means nothing."""
_TEMPLATES = re.compile(r"tokenizer\.(chat_template(\..+)?|chat_templates|huggingface\.json)")
_OTHER_FORMATS = ("adapter.", "clip.")


_TEXTS = (
    "general.architecture", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre",
)  # fmt: skip
"""Keys whose values are names."""


def refuse_no_names(file: Path, fields: Mapping[str, Any]) -> None:
    """Refuses a number or a list where a name is expected, before anything is looked up by it.

    Raises:
        UserError: with the key and its value.
    """
    for key in _TEXTS:
        if not isinstance(value := fields.get(key, ""), str):
            raise UserError(
                f"{file}: {key} is {value!r:.40}, which is no name; take the safetensors checkpoint"
            )


def refuse_unknown(file: Path, fields: Mapping[str, Any], arch: str) -> None:
    """Refuses a key that may change what the model computes and that nothing here understands.

    Args:
        file: for messages.
        fields: key → value.
        arch: the architecture.

    Raises:
        UserError: with the key and its value.
    """
    kind = fields.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{file} holds no model: general.type is {kind!r:.40}")
    for key, value in fields.items():
        if key.startswith(f"{arch}."):
            known = _is_understood(key.removeprefix(f"{arch}."), value, fields, arch)
        elif key.startswith("tokenizer."):
            known = _is_tokenizer_understood(key, value, vocabulary.kind(fields))
        else:
            known = not key.startswith(_OTHER_FORMATS)
        if not known:
            raise UserError(
                f"{file}: {key} is {value!r:.60}, which is not understood here; take the safetensors "
                "checkpoint of this model"
            )


def _is_understood(key: str, value: Any, fields: Mapping[str, Any], arch: str) -> bool:
    """Whether a key of the architecture is used, or changes nothing."""
    if key in _USED or key in _SILENT or key in DIALECTS[arch].keys:
        return True
    if key in _NEUTRAL and value in _NEUTRAL[key]:
        return True
    if key == "attention.sliding_window" and isinstance(value, int):
        return value == 0 or value >= fields.get(f"{arch}.context_length", math.inf)
    return key in _NOTHING_AT_NOUGHT and (not any(value) if isinstance(value, list) else value == 0)


def _is_tokenizer_understood(key: str, value: Any, kind: str | None) -> bool:
    """Whether a key of a kind of tokenizer is used, or changes nothing."""
    if _TEMPLATES.fullmatch(key):
        return True
    name = key.removeprefix("tokenizer.ggml.")
    if name == "add_space_prefix" and kind == vocabulary.SENTENCEPIECE:
        return isinstance(value, bool)
    if name in _TOKENIZER_OFF:
        return not value
    return name in _TOKENIZER_USED or bool(_TOKENIZER_SILENT.fullmatch(name))
