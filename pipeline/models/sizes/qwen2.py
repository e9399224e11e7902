"""Qwen2 and Qwen2.5: biases on q, k and v, whatever the config says."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(qkv_bias=True, output_bias=False)
