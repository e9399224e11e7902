"""Phi-1, Phi-1.5 and Phi-2: attention and MLP in parallel behind one LayerNorm, biases, partial rotary embedding.

Ground truth: transformers `modeling_phi.py`. Both branches read the norm of the same stream; they are added one after
the other (x + attention, then + mlp), so that each sublayer has its own join like everywhere else.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures._decoder import Decoder
from pipeline.types import UserError

_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}


class Architecture(Decoder):
    final_norm = "model.final_layernorm"

    def layer(self, x: ir.Value, i: int) -> ir.Value:
        start, joined = x, x
        if (i, "attn") in self.skip and (i, "mlp") in self.skip:
            return x
        normed = self.norm(start, f"model.layers.{i}.input_layernorm")
        if (i, "attn") not in self.skip:
            with self.scope("attention"):
                joined = self.op("Add", [joined, self.attention(normed, i)], label="residual")
        if (i, "mlp") not in self.skip:
            with self.scope("mlp"):
                joined = self.op("Add", [joined, self.mlp(normed, i)], label="residual")
        return joined

    def norm(self, x: ir.Value, name: str, size: int = 0) -> ir.Value:
        scale, bias = (
            self.weight(f"{name}.weight", size or self.C),
            self.weight(f"{name}.bias", size or self.C),
        )
        epsilon = float(self.config["layer_norm_eps"])
        return self.op(
            "LayerNormalization",
            [x, scale, bias],
            axis=-1,
            epsilon=epsilon,
            stash_type=1,
            label=name.rsplit(".", 1)[-1],
        )

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        if self.config.get("qk_layernorm"):
            raise UserError(
                f"{self.checkpoint.folder}: qk_layernorm is not authored for phi; use --from-onnx"
            )
        name = f"model.layers.{i}.self_attn"
        q = self.linear(x, f"{name}.q_proj", self.C, self.H * self.D, bias=True)
        k = self.linear(x, f"{name}.k_proj", self.C, self.G * self.D, bias=True)
        v = self.linear(x, f"{name}.v_proj", self.C, self.G * self.D, bias=True)
        return self.linear(self.attend(q, k, v, i), f"{name}.dense", self.H * self.D, self.C, bias=True)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        name, act = f"model.layers.{i}.mlp", self.config.get("hidden_act", "gelu_new")
        if act not in _GELU:
            raise UserError(
                f"{self.checkpoint.folder}: hidden_act {act!r} is not authored for phi; use --from-onnx"
            )
        up = self.linear(x, f"{name}.fc1", self.C, self.F, bias=True)
        return self.linear(
            self.op("Gelu", [up], approximate=_GELU[act]), f"{name}.fc2", self.F, self.C, bias=True
        )

    def head(self, x: ir.Value) -> ir.Value:
        return self.linear(x, "lm_head", self.C, self.V, bias=True)
