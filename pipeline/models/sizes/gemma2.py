"""Gemma 2: norms before and behind each sublayer."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    tied=True,
)
