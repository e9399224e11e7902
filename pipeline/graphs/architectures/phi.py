"""Phi-1, Phi-1.5 and Phi-2: attention and MLP in parallel behind one LayerNorm, biases, partial rotary.

Ground truth: transformers `modeling_phi.py`. Both branches read the norm of the same stream. They are added
one after the other (x + attention, then + mlp), so that each sublayer has its own join as everywhere else.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures._decoder import Decoder


class Architecture(Decoder):
    """Parallel sublayers with biases."""

    def layer(self, x: ir.Value, i: int) -> ir.Value:
        """One layer: x + attention(norm(x)) + mlp(norm(x))."""
        if (i, "attn") in self.skip and (i, "mlp") in self.skip:
            return x
        normed = self.norm(x, f"model.layers.{i}.input_layernorm")
        if (i, "attn") not in self.skip:
            with self.scope("attention"):
                x = self.op("Add", [x, self.attention(normed, i)], label="residual")
        if (i, "mlp") not in self.skip:
            with self.scope("mlp"):
                x = self.op("Add", [x, self.mlp(normed, i)], label="residual")
        return x

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name = f"model.layers.{i}.self_attn"
        q = self.linear(x, f"{name}.q_proj", self.C, self.H * self.D, bias=True)
        k = self.linear(x, f"{name}.k_proj", self.C, self.G * self.D, bias=True)
        v = self.linear(x, f"{name}.v_proj", self.C, self.G * self.D, bias=True)
        return self.linear(self.attend(q, k, v, i), f"{name}.dense", self.H * self.D, self.C, bias=True)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name = f"model.layers.{i}.mlp"
        active = self.activation(self.linear(x, f"{name}.fc1", self.C, self.F, bias=True))
        return self.linear(active, f"{name}.fc2", self.F, self.C, bias=True)

    def head(self, x: ir.Value) -> ir.Value:
        """[B, K, C] → [B, K, V]; its bias is its own also where its matrix is the embedding."""
        logits = super().head(x)
        with self.scope("lm_head"):
            return self.op("Add", [logits, self.weight("lm_head.bias", self.V)])
