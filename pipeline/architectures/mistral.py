"""Mistral: Llama with a sliding attention window. Ground truth: transformers `modeling_mistral.py`."""

from __future__ import annotations

from pipeline.architectures import llama


class Architecture(llama.Architecture):
    qkv_bias = o_bias = False

    def window(self, i: int) -> int | None:
        return self.config.get("sliding_window")
