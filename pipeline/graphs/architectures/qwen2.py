"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and windows on some layers.

Ground truth: transformers `modeling_qwen2.py`.
"""

from __future__ import annotations

from pipeline.graphs.architectures import llama


class Architecture(llama.Architecture):
    """Biases on q, k and v; the config says which layers have a window."""

    def biases(self) -> tuple[bool, bool]:
        """On q, k and v alone."""
        return True, False

    def window(self, i: int) -> int | None:
        """Keys that a query of layer i sees.

        Newer configs list `layer_types`; in older ones layers from `max_window_layers` on have the window.
        """
        if not self.config.get("use_sliding_window", False):
            return None
        kinds = self.config.get("layer_types")
        slides = kinds[i] == "sliding_attention" if kinds else i >= self.config.get("max_window_layers", 28)
        return self.config.get("sliding_window") if slides else None
