"""OPT: LayerNorms, biases everywhere, an MLP without a gate, and a learned table of positions."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(
    gated_mlp=False,
    layer_norms=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    learned_positions=2,
    tied=True,
    writers=("self_attn.out_proj", "fc2"),
)
