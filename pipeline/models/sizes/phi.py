"""Phi-1, Phi-1.5 and Phi-2: one LayerNorm a layer for both branches, biases everywhere, the head included."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(
    gated_mlp=False,
    layer_norms=True,
    mlp_norms=(None, None),
    shared_norm=True,
    final_norm="model.final_layernorm",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    head_bias=True,
    writers=("self_attn.dense", "mlp.fc2"),
)
