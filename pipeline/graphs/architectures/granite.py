"""Granite 3 without experts: Llama with four numbers that scale what Llama does not.

Ground truth: transformers `modeling_granite.py`. A sublayer's scale is within its branch, so that the branch
joins the stream by an `Add` as everywhere else.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graphs.architectures import llama


class Architecture(llama.Architecture):
    """Scales on the embedding, the attention's scores, the sublayers and the logits."""

    def embed(self, ids: ir.Value) -> ir.Value:
        """[B, S] → [B, S, C]."""
        return self.times(super().embed(ids), self.config["embedding_multiplier"], "embed_scale")

    @property
    def attention_scale(self) -> float:
        """The config's number stands for 1 / √D; the class's own value is 1."""
        return float(self.config["attention_multiplier"])

    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        return self.times(super().attention(x, i), self.config["residual_multiplier"], "scaled")

    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""
        return self.times(super().mlp(x, i), self.config["residual_multiplier"], "scaled")

    def head(self, x: ir.Value) -> ir.Value:
        """[B, K, C] → [B, K, V], divided by `logits_scaling`."""
        logits, divisor = super().head(x), self.config["logits_scaling"]
        return (
            logits if divisor == 1 else self.op("Div", [logits, self.number(divisor)], label="logits_scale")
        )
