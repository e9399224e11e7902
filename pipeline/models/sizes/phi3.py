"""Phi-3: queries, keys and values are one matrix, gate and up another."""

from pipeline.models.sizes import SizeRules

RULES = SizeRules(values=None)
