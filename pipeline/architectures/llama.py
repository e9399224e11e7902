"""Llama 1-3 and everything of that form (SmolLM2, TinyLlama, Vicuna): RMSNorm, rotary GQA, gated SiLU MLP.

Ground truth: transformers `modeling_llama.py`.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.architectures._decoder import Decoder


class Architecture(Decoder):
    @property
    def qkv_bias(self) -> bool:
        return bool(self.config.get("attention_bias", False))

    @property
    def o_bias(self) -> bool:
        return bool(self.config.get("attention_bias", False))

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        name = f"model.layers.{i}.self_attn"
        q = self.linear(x, f"{name}.q_proj", self.C, self.H * self.D, bias=self.qkv_bias)
        k = self.linear(x, f"{name}.k_proj", self.C, self.G * self.D, bias=self.qkv_bias)
        v = self.linear(x, f"{name}.v_proj", self.C, self.G * self.D, bias=self.qkv_bias)
        return self.linear(self.attend(q, k, v, i), f"{name}.o_proj", self.H * self.D, self.C, bias=self.o_bias)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        name, bias = f"model.layers.{i}.mlp", bool(self.config.get("mlp_bias", False))
        gate = self.linear(x, f"{name}.gate_proj", self.C, self.F, bias=bias)
        up = self.linear(x, f"{name}.up_proj", self.C, self.F, bias=bias)
        return self.gated_mlp(gate, up, f"{name}.down_proj", bias=bias)
