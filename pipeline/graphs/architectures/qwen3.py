"""Qwen3: Llama with an RMSNorm on every query and key head.

Ground truth: transformers `modeling_qwen3.py`.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures import qwen2


class Architecture(qwen2.Architecture):
    """Norms over D on queries and keys; windows as in Qwen2."""

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name, bias = f"model.layers.{i}.self_attn", self.config["attention_bias"]
        q = self.linear(x, f"{name}.q_proj", self.C, self.H * self.D, bias=bias)
        k = self.linear(x, f"{name}.k_proj", self.C, self.G * self.D, bias=bias)
        v = self.linear(x, f"{name}.v_proj", self.C, self.G * self.D, bias=bias)
        queries = self.heads(q, self.H, norm=f"{name}.q_norm")
        keys = self.heads(k, self.G, norm=f"{name}.k_norm")
        mixed = self.attend_heads(queries, keys, self.heads(v, self.G), i)
        return self.linear(mixed, f"{name}.o_proj", self.H * self.D, self.C, bias=bias)
