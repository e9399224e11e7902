"""Mistral: Llama with a sliding attention window. Ground truth: transformers `modeling_mistral.py`."""

from __future__ import annotations

from pipeline.graphs.architectures import llama


class Architecture(llama.Architecture):
    """No biases; one window for all layers."""

    def biases(self) -> tuple[bool, bool]:
        """None anywhere."""
        return False, False
