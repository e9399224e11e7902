"""Qwen2 and Qwen2.5: Llama with biases on q, k and v; the config says which layers have a window.

Ground truth: transformers `modeling_qwen2.py`.
"""

from __future__ import annotations

from pipeline.graphs.architectures import llama


class Architecture(llama.Architecture):
    """Biases on q, k and v."""

    def biases(self) -> tuple[bool, bool]:
        """On q, k and v alone."""
        return True, False
