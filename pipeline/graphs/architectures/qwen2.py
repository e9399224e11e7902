"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and windows on some layers. Ground truth: `modeling_qwen2.py`."""

from __future__ import annotations

from pipeline.graphs.architectures import llama


class Architecture(llama.Architecture):
    def biases(self) -> tuple[bool, bool]:
        return True, False

    def window(self, i: int) -> int | None:
        """`layer_types` says it in newer configs; older ones give every layer from `max_window_layers` on a window."""
        if not self.config.get("use_sliding_window", False):
            return None
        kinds = self.config.get("layer_types")
        slides = kinds[i] == "sliding_attention" if kinds else i >= self.config.get("max_window_layers", 28)
        return self.config.get("sliding_window") if slides else None
