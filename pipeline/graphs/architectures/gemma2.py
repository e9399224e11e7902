"""Gemma 2: norms before and behind each sublayer, soft caps, every other layer with a window.

Ground truth: transformers `modeling_gemma2.py`.

The residual stream of a graph is FP32 whatever its precision: Gemma was trained in bfloat16, and its stream
outgrows float16, which ends at 65504. Matrix products, attention and the cache have the graph's precision.

Legend: B batch, S new tokens, T all tokens, H query heads, G key/value heads, R = H / G, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from pipeline.graphs.architectures import llama

FLOAT = ir.DataType.FLOAT
_MASKED = np.float32(-1e30)


class Architecture(llama.Architecture):
    """Llama's projections, with Gemma's norms, scales and caps around them."""

    activation_key = "hidden_activation"

    def embed(self, ids: ir.Value) -> ir.Value:
        """[B, S] → [B, S, C] in FP32, times √C; transformers rounds √C to the precision, so this does."""
        return self.wide(self.times(super().embed(ids), self.C**0.5, "embed_scale"))

    def joined(
        self,
        x: ir.Value,
        i: int,
        write: Callable[[ir.Value, int], ir.Value],
        norms: tuple[str | None, str | None],
    ) -> ir.Value:
        """As Decoder's, on a stream in FP32."""
        before, after = (f"model.layers.{i}.{norm}" for norm in norms)
        branch = write(self.narrow(self.wide_norm(x, before)), i)
        return self.op("Add", [x, self.wide_norm(self.wide(branch), after)], label="residual")

    def norm(self, x: ir.Value, name: str, size: int = 0) -> ir.Value:
        """`wide_norm` on any precision, given in the graph's."""
        return self.narrow(self.wide_norm(self.wide(x), name, size))

    def wide_norm(self, x: ir.Value, name: str, size: int = 0) -> ir.Value:
        """RMSNorm in FP32 with 1 + weight for a scale; arguments as `norm`."""
        weight = self.weight(f"{name}.weight", size or self.C, computed=FLOAT)
        label = name.rsplit(".", 1)[-1]
        scale = self.op("Add", [weight, self.constant(np.float32(1), "one")], label=f"{label}_scale")
        epsilon = self.config["rms_norm_eps"]
        return self.op("RMSNormalization", [x, scale], axis=-1, epsilon=epsilon, stash_type=1, label=label)

    def wide(self, x: ir.Value) -> ir.Value:
        """The same in FP32."""
        return x if self.dtype == FLOAT else self.op("Cast", [x], to=FLOAT, label="wide")

    def narrow(self, x: ir.Value) -> ir.Value:
        """What is FP32 in the graph's precision."""
        return x if self.dtype == FLOAT else self.op("Cast", [x], to=self.dtype, label="narrow")

    @property
    def attention_scale(self) -> float:
        """A number of the config's own, which need not be the head dimension."""
        return float(self.config["query_pre_attn_scalar"] ** -0.5)

    def mix(self, queries: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value) -> ir.Value:
        """Attention with soft-capped scores, by nodes: TensorRT refuses the operator's `softcap`."""
        cap = self.config["attn_logit_softcapping"]
        if cap is None:
            return super().mix(queries, keys, values, mask)
        group = [self.op("Unsqueeze", [x, self.ints(2)], label="group") for x in (keys, values, mask)]
        queries = self.times(queries, self.attention_scale / cap, "scaled")
        queries = self.op("Reshape", [queries, self.ints(0, self.G, self.H // self.G, -1, self.D)], label="q")
        transposed = self.op("Transpose", [group[0]], perm=[0, 1, 2, 4, 3], label="k")
        scores = self.op("MatMul", [queries, transposed], label="scores")  # [B, G, R, S, T]
        scores = self.times(self.op("Tanh", [scores]), cap, "capped")
        masked = self.constant(_MASKED, "masked")
        scores = self.op("Where", [group[2], self.wide(scores), masked], label="kept")
        weights = self.narrow(self.op("Softmax", [scores], axis=-1))
        mixed = self.op("MatMul", [weights, group[1]], label="mixed")
        return self.op("Reshape", [mixed, self.ints(0, self.H, -1, self.D)], label="ungroup")

    def head(self, x: ir.Value) -> ir.Value:
        """[B, K, C] → [B, K, V], soft-capped where the config says so (Gemma 2 report, section 2)."""
        logits, cap = super().head(x), self.config["final_logit_softcapping"]
        if cap is None:
            return logits
        with self.scope("softcap"):
            return self.times(self.op("Tanh", [self.times(logits, 1 / cap, "scaled")]), cap, "capped")
