"""Qwen3: Llama with an RMSNorm on every query and key head (`models/sizes/qwen3.py` says so).

Ground truth: transformers `modeling_qwen3.py`.
"""

from __future__ import annotations

from pipeline.graphs.architectures import llama


class Architecture(llama.Architecture):
    """Windows as in Qwen2, biases as in Llama."""
