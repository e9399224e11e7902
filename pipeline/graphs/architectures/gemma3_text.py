"""Gemma 3, text alone: Gemma 2 with norms on the heads, no soft caps, and a rope for the windows alone.

Ground truth: transformers `modeling_gemma3.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.graphs.architectures import gemma2
from pipeline.models.rope import Rope, local_rope, rope


class Architecture(gemma2.Architecture):
    """Layers with a window rotate by another base than those that see everything."""

    def layer_ropes(self) -> Sequence[Rope | None]:
        """One of two, by the layer's type."""
        ropes = {"full_attention": rope(self.config), "sliding_attention": local_rope(self.config)}
        return [ropes[kind] for kind in self.config["layer_types"]]
