"""Gemma 3: as Gemma 2, with a norm on every query and key head."""

from dataclasses import replace

from pipeline.models.sizes import gemma2

RULES = replace(gemma2.RULES, head_norms=True)
