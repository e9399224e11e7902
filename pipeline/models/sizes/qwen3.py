"""Qwen3: a norm on every query and key head."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(head_norms=True)
