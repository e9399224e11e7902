"""GPT-NeoX and Pythia: LayerNorms, biases everywhere, an MLP without a gate."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(gated_mlp=False, layer_norms=True, qkv_bias=True, output_bias=True, mlp_bias=True)
