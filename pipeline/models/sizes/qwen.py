"""The first Qwen: biases on q, k and v alone, its own names, and a size that counts gate and up together."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(
    attention_norms=("ln_1", None),
    mlp_norms=("ln_2", None),
    qkv_bias=True,
    output_bias=False,
    mlp_bias=False,
    halved_mlp=True,
    embedding="transformer.wte",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    writers=("attn.c_proj", "mlp.c_proj"),
    values=None,
)
