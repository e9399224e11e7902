"""GPT-NeoX and Pythia: parallel or sequential sublayers with a LayerNorm each, q, k and v in one weight.

Ground truth: transformers `modeling_gpt_neox.py`. Parallel branches are added one after the other, as in
`phi`; here each reads a norm of its own of the same stream.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures._decoder import Decoder


class Architecture(Decoder):
    """The rows of the fused weight are q, k and v of head after head."""

    def layer(self, x: ir.Value, i: int) -> ir.Value:
        """One layer: x + attention(norm(x)) + mlp(norm(x)), or one after the other."""
        if not self.config["use_parallel_residual"]:
            return super().layer(x, i)
        stream, name = x, f"{self.rules.layers}.{i}"
        if (i, "attn") not in self.skip:
            with self.scope("attention"):
                branch = self.attention(self.norm(stream, f"{name}.input_layernorm"), i)
                x = self.op("Add", [x, branch], label="residual")
        if (i, "mlp") not in self.skip:
            with self.scope("mlp"):
                branch = self.mlp(self.norm(stream, f"{name}.post_attention_layernorm"), i)
                x = self.op("Add", [x, branch], label="residual")
        return x

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name, bias = f"{self.rules.layers}.{i}.attention", self.config["attention_bias"]
        fused = self.linear(x, f"{name}.query_key_value", self.C, 3 * self.H * self.D, bias=bias)
        split = self.op("Reshape", [fused, self.ints(0, 0, self.H, 3 * self.D)], label="split")
        heads = self.op("Transpose", [split], perm=[0, 2, 1, 3], label="heads")
        q, k, v = self.ops("Split", [heads, self.ints(self.D, self.D, self.D)], 3, axis=-1, label="qkv")
        mixed = self.attend_heads(q, k, v, i)
        return self.linear(mixed, f"{name}.dense", self.H * self.D, self.C, bias=bias)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name = f"{self.rules.layers}.{i}.mlp"
        active = self.activation(self.linear(x, f"{name}.dense_h_to_4h", self.C, self.F, bias=True))
        return self.linear(active, f"{name}.dense_4h_to_h", self.F, self.C, bias=True)
