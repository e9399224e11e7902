"""SmolLM3: Llama with layers that have no rotary embedding, every fourth one as published.

Ground truth: transformers `modeling_smollm3.py`. Source: Yang et al. 2025, "Rope to Nope and Back Again".
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.graphs.architectures import llama
from pipeline.models.rope import Rope, rope


class Architecture(llama.Architecture):
    """A layer without rope may have the window."""

    def layer_ropes(self) -> Sequence[Rope | None]:
        """One for all layers that have one."""
        table = rope(self.config)
        return [table if has_rope else None for has_rope in self.config["no_rope_layers"][: self.L]]
