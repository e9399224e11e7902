"""What config.json of Gemma 2 and 3 has beyond Llama's: from a GGUF file, or what llama.cpp knows of them.

Source: llama.cpp's `src/models/gemma2.cpp` and `gemma3.cpp`, `load_arch_hparams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.models.gguf import windows
from pipeline.models.gguf.numbers import Numbers

_WINDOW, _CAP = "attention.sliding_window", "final_logit_softcapping"
KEYS_2 = {_WINDOW, "attention.sliding_window_pattern", "attn_logit_softcapping", _CAP}
KEYS_3 = {_WINDOW, "attention.sliding_window_pattern", _CAP, "rope.freq_base_swa"}
"""Of the architecture: they are read here."""


def gemma2(numbers: Numbers, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every other layer has a window; scores and logits are soft-capped."""
    layers = config["num_hidden_layers"]
    return {
        "query_pre_attn_scalar": _scalar(config, is_largest=layers == 46),
        "attn_logit_softcapping": numbers.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": numbers.number(_CAP, 30.0),
        "sliding_window": numbers.size(_WINDOW, 4096),
        "layer_types": windows.layer_types(numbers, layers, 2),
    }


def gemma3(numbers: Numbers, config: Mapping[str, Any]) -> dict[str, Any]:
    """Five of six layers have a window, and a rope of their own; a file without a window has neither."""
    layers = config["num_hidden_layers"]
    has_window = bool(numbers.fields.get(f"{numbers.arch}.{_WINDOW}"))
    cap = numbers.fields.get(f"{numbers.arch}.{_CAP}")
    return {
        "query_pre_attn_scalar": _scalar(config, is_largest=layers == 62),
        "final_logit_softcapping": numbers.number(_CAP) if cap else None,
        "sliding_window": numbers.size(_WINDOW) if has_window else config["max_position_embeddings"],
        "layer_types": windows.layer_types(numbers, layers, 6) if has_window else ["full_attention"] * layers,
        "rope_local_base_freq": numbers.number("rope.freq_base_swa", 10000.0),
    }


def _scalar(config: Mapping[str, Any], is_largest: bool) -> int:
    """What scores are divided by the root of; the 27B models, known by their layers, have another number."""
    heads = config["num_attention_heads"]
    return int(config["hidden_size"] // heads if is_largest else config["head_dim"])
