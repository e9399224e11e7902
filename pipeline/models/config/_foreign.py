"""Keys of a config.json that the known architectures do not have: which of them change the model.

transformers' class of a model_type passes over them in silence. Some come from tools and mean nothing at
inference. Others are another architecture's, which the model's own code may well read (`num_experts`,
`attn_logit_softcapping`): those are refused by name. What is neither is named in a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.types import UserError

log = logging.getLogger(__name__)

_HARMLESS = re.compile(
    r"_.*|architectures|model_type|transformers.*|unsloth.*|is_llama_config|auto_map|layer_types"
    r"|drop_(attn|mlp)_list|per_layer_config|(torch_)?dtype|use_cache|initializer_range|.*dropout|.*_pdrop|pretraining_tp"
    r"|.*token_ids?|.*tokenizer.*|max_sequence_length|model_max_length|(use_)?flash_att.*|attn_implementation"
    r"|gradient_checkpointing|return_dict.*|output_.*|id2label|label2id|num_labels|problem_type"
    r"|finetuning_task|task_specific_params|prefix|tf_legacy_loss|use_bfloat16|torchscript|is_decoder"
    r"|chunk_size_feed_forward|max_window_layers|use_sliding_window|original_max_position_embeddings"
    r"|cache_implementation"
    r"|decoder_start_.*|(max|min)_length|do_sample|early_stopping|num_beams|num_beam_groups"
    r"|diversity_penalty|temperature|top_[kp]|typical_p|repetition_penalty|length_penalty"
    r"|(encoder_)?no_repeat_ngram_size|bad_words_ids|num_return_sequences|remove_invalid_values"
    r"|exponential_decay_length_penalty|(begin_)?suppress_tokens|rope_type|mrope_.*|skip_pipeline"
)
"""Of tools, training, generation and tokenizers; of the window, what `_windows` has already judged; of
skipped layers, what `drop_lists` reads."""
_QUANTISED = ("quantization_config", "quantization", "compression_config")
_SCALES = re.compile(
    r".*(multiplier|scaling|scalar|scaling_factor|_scale)|scale_.*|full_attn_mod|interpolate_factor|.*rezero.*"
)
"""Numbers that something is multiplied by: None, 1 or true change nothing."""
_SWITCHES = re.compile(
    r".*soft_?cap.*|.*experts?(_.*)?|(.*_)?moe(_.*)?|.*router.*|mlp_only_layers|decoder_sparse_step"
    r"|.*qk_?(layer)?norm.*|.*bias|add_.*_bias.*|alibi|clip_qkv|.*parallel_(attn|residual|block)|multi_query"
    r"|no_rope_layers?.*|.*sliding_window_pattern|attention_chunk_size|attn_temperature_tuning|.*lora_rank"
    r"|first_k_dense_replace|block_configs|cross_attention.*|add_cross_attention|is_encoder_decoder"
    r"|pruned_heads|use_bidirectional.*|bidirectional|rope_interleaved?|rotary_interleaved|rotary_pct"
    r"|rotary_dim|rotary_emb_base|rope_local_base_freq|.*_layer_norm_before|do_layer_norm.*|post_norm.*"
    r"|sandwich.*|use_mrope|use_post_norm|num_nextn_predict_layers|.*kv_shared_layers|dim_model_base|mup_.*"
    r"|text_config|vision_config|audio_config|tie_encoder_decoder|use_mla|attention_sinks?|use_sinks?"
    r"|attn_window_size|window_size|local_attention.*|global_attn.*|layer_idx_to_.*|mamba_.*|ssm_.*"
)
"""Other architectures' parts: None, false, nought or empty means that there are none."""
_PASSED_OVER = {"qwen2": "attention_bias", "gemma2": "hidden_act", "gemma3_text": "hidden_act"}
"""Keys that are known to change nothing: Qwen2's q, k, v have biases always; Gemma has hidden_activation."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_causal": (None, True),
    "position_embedding_type": (None, "rope", "rotary", "absolute"),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "decoder_sparse_step": (None, 0, 1),
}


def refuse(config: Mapping[str, Any], own: Mapping[str, Any], fixed: Mapping[str, Any], file: Path) -> None:
    """Refuses what would be left out of account; names in a warning what is not known.

    Args:
        config: normalised.
        own: the keys that the architecture has.
        fixed: keys with the one value that it may have.
        file: for messages.

    Raises:
        UserError: the model is quantised, or a key changes what it computes.
    """
    _refuse_quantised(config, file)
    for key, only in fixed.items():
        value = config.get(key, only)
        if (
            value != only
            and not (only is False and value is None)
            and not (key == "sliding_window" and value >= config["max_position_embeddings"])
        ):
            raise UserError(
                f"{file}: {key} is {value!r:.60}; of {config['model_type']} only {only!r} is authored here "
                "(use --from-onnx where transformers runs it)"
            )
    unknown = []
    for key in sorted(set(config) - set(own) - set(fixed)):
        value = config[key]
        if key == _PASSED_OVER.get(config["model_type"]):
            continue
        if _changes(key, value):
            raise UserError(
                f"{file}: {key} is {value!r:.60}, which {config['model_type']} has not and is not authored "
                "here; if the model's own code ignores it, remove it from config.json"
            )
        if not _HARMLESS.fullmatch(key) and not _SWITCHES.fullmatch(key) and not _SCALES.fullmatch(key):
            unknown += [key] if key not in _NEUTRAL and value not in (None, False) else []
    if unknown:
        log.warning("%s: transformers' class passes over these keys, and so does the graph: %s",
                    file, ", ".join(unknown))  # fmt: skip


def _refuse_quantised(config: Mapping[str, Any], file: Path) -> None:
    """Refuses a model whose weights the config calls quantised."""
    for key in _QUANTISED:
        if config.get(key):
            raise UserError(
                f"{file}: {key}: the weights are quantised ({_method(config[key])}); a graph needs 16- or "
                "32-bit weights: take the model that it was quantised from, or save `dequantize()` of it"
            )


def _changes(key: str, value: Any) -> bool:
    """Whether a key with this value belongs to a model that computes something else."""
    if key in _NEUTRAL:
        return value not in _NEUTRAL[key]
    if _HARMLESS.fullmatch(key):
        return False
    if _SCALES.fullmatch(key):
        return value is not None and value != 1  # true and false too: 1 and 0
    return bool(_SWITCHES.fullmatch(key)) and bool(value)


def _method(settings: Any) -> str:
    """What a quantisation calls itself."""
    if isinstance(settings, dict):
        bits = settings.get("bits")
        name = settings.get("quant_method") or settings.get("quantization") or "unknown method"
        return f"{name}, {bits} bits" if bits else str(name)
    return str(settings)[:40]
