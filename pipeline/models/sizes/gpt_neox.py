"""GPT-NeoX and Pythia: LayerNorms, biases everywhere (the attention's can be off), an MLP without a gate."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(
    gated_mlp=False,
    layer_norms=True,
    mlp_bias=True,
    embedding="gpt_neox.embed_in",
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
    writers=("attention.dense", "mlp.dense_4h_to_h"),
    values=None,
)
