"""Llama 1-3 and everything of that form (SmolLM2, TinyLlama, Vicuna): RMSNorm, rotary GQA, gated SiLU MLP.

Ground truth: transformers `modeling_llama.py`.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures._decoder import Decoder


class Architecture(Decoder):
    """Projections of their own for q, k, v, gate and up; biases and norms of heads where there are any."""

    def biases(self) -> tuple[bool, bool]:
        """Whether q, k, v and the output projection have biases."""
        has = self.config["attention_bias"]
        return has, has

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name, (qkv_bias, o_bias) = f"model.layers.{i}.self_attn", self.biases()
        q = self.linear(x, f"{name}.q_proj", self.C, self.H * self.D, bias=qkv_bias)
        k = self.linear(x, f"{name}.k_proj", self.C, self.G * self.D, bias=qkv_bias)
        v = self.linear(x, f"{name}.v_proj", self.C, self.G * self.D, bias=qkv_bias)
        q_norm, k_norm = (f"{name}.q_norm", f"{name}.k_norm") if self.rules.head_norms else (None, None)
        queries, keys = self.heads(q, self.H, norm=q_norm), self.heads(k, self.G, norm=k_norm)
        mixed = self.attend_heads(queries, keys, self.heads(v, self.G), i)
        return self.linear(mixed, f"{name}.o_proj", self.H * self.D, self.C, bias=o_bias)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name, bias = f"model.layers.{i}.mlp", self.config["mlp_bias"]
        gate = self.linear(x, f"{name}.gate_proj", self.C, self.F, bias=bias)
        up = self.linear(x, f"{name}.up_proj", self.C, self.F, bias=bias)
        return self.gated_mlp(gate, up, f"{name}.down_proj", bias=bias)
