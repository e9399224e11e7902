"""Phi-3 and Phi-4-mini: q, k, v in one weight and gate, up in another.

Ground truth: transformers `modeling_phi3.py`.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures._decoder import Decoder


class Architecture(Decoder):
    """Fused projections, split after the product."""

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name, sizes = f"model.layers.{i}.self_attn", (self.H * self.D, self.G * self.D, self.G * self.D)
        fused = self.linear(x, f"{name}.qkv_proj", self.C, sum(sizes))
        q, k, v = self.ops("Split", [fused, self.ints(*sizes)], 3, axis=-1, label="qkv")
        return self.linear(self.attend(q, k, v, i), f"{name}.o_proj", self.H * self.D, self.C)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name = f"model.layers.{i}.mlp"
        fused = self.linear(x, f"{name}.gate_up_proj", self.C, 2 * self.F)
        gate, up = self.ops("Split", [fused, self.ints(self.F, self.F)], 2, axis=-1, label="gate_up")
        return self.gated_mlp(gate, up, f"{name}.down_proj")
