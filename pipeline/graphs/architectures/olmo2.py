"""OLMo 2: Llama with norms behind the sublayers instead of before them, and on whole queries and keys.

Ground truth: transformers `modeling_olmo2.py`. Source: OLMo 2 report (Walsh et al. 2024), section 2.1.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures import llama


class Architecture(llama.Architecture):
    """The norms of q and k run over all heads at once, before the split into heads."""

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name, bias = f"model.layers.{i}.self_attn", self.config["attention_bias"]
        q = self.linear(x, f"{name}.q_proj", self.C, self.H * self.D, bias=bias)
        k = self.linear(x, f"{name}.k_proj", self.C, self.G * self.D, bias=bias)
        v = self.linear(x, f"{name}.v_proj", self.C, self.G * self.D, bias=bias)
        q = self.norm(q, f"{name}.q_norm", self.H * self.D)
        k = self.norm(k, f"{name}.k_norm", self.G * self.D)
        return self.linear(self.attend(q, k, v, i), f"{name}.o_proj", self.H * self.D, self.C, bias=bias)
