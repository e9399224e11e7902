"""The first Qwen (Qwen-1.8B to 72B, the 7B of Gromov et al.): Llama with q, k, v in one weight with a bias.

Ground truth: `models/qwen.py`, after the published `modeling_qwen.py`. Attention is plain up to `seq_length`
tokens, which is the context that `models/config` gives.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures._decoder import Decoder
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import Precision, SkipSet


class Architecture(Decoder):
    """Fused q, k and v; F is half of what the config says."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, skip: SkipSet) -> None:
        super().__init__(checkpoint, precision, skip)
        self.F //= 2

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        name, width = f"{self.rules.layers}.{i}.attn", self.H * self.D
        fused = self.linear(x, f"{name}.c_attn", self.C, 3 * width, bias=True)
        q, k, v = self.ops("Split", [fused, self.ints(width, width, width)], 3, axis=-1, label="qkv")
        return self.linear(self.attend(q, k, v, i), f"{name}.c_proj", width, self.C)

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]: w1 · silu(w2), where others call w2 the gate."""
        name = f"{self.rules.layers}.{i}.mlp"
        up = self.linear(x, f"{name}.w1", self.C, self.F)
        gate = self.linear(x, f"{name}.w2", self.C, self.F)
        return self.gated_mlp(gate, up, f"{name}.c_proj")
