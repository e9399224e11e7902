"""OLMo 2: norms behind the sublayers alone, and one each on all of q and all of k."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(
    attention_norms=(None, "post_attention_layernorm"),
    mlp_norms=(None, "post_feedforward_layernorm"),
    projection_norms=True,
)
