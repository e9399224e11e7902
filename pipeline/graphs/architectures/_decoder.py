"""The decoder that every architecture shares, written as ONNX nodes.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, V vocabulary,
H query heads, G key/value heads, D head dimension, L layers, C hidden size, F feed-forward size.

The nodes have the one form that ONNX Runtime and TensorRT both compute correctly: `Attention` with one
output, a bool mask, `Concat` for the cache (docs/architecture.md, "The graph contract"). TensorRT refuses
other forms or, worse, misreads them silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import onnx_ir as ir

from pipeline.graphs.architectures._builder import INT64, GraphBuilder
from pipeline.graphs.architectures._positions import write_angles, write_mask
from pipeline.models import tensor_use
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.rope import rope
from pipeline.types import Precision, SkipSet, UserError


class Decoder(GraphBuilder, ABC):
    """Authors one decoder graph. An architecture gives `attention` and `mlp`, and overrides what differs.

    Args:
        checkpoint: config and weights.
        precision: of the graph.
        skip: sublayers that are not written.

    Raises:
        UserError: a layer of the skip set does not exist, or the rope is not authored.
    """

    final_norm = "model.norm"
    """The checkpoint's name of the norm before the head."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, skip: SkipSet) -> None:
        super().__init__(checkpoint, precision)
        self.config, self.skip = checkpoint.config, skip
        self.L, self.V = self.config["num_hidden_layers"], self.config["vocab_size"]
        self.H, self.G = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self.C, self.F = self.config["hidden_size"], self.config["intermediate_size"]
        self.D = self.config["head_dim"]
        self.rope = rope(self.config)
        skip.within(self.L)
        self._masks: dict[int | None, ir.Value] = {}

    # ---- the graph --------------------------------------------------------------------------------------

    def author(self) -> ir.Model:
        """The whole graph of the contract, sublayers of the skip set left out.

        Raises:
            UserError: the checkpoint lacks a weight, or holds one that the graph does not read.
        """
        ids = self.input("input_ids", INT64, ["batch", "sequence"])
        padding = self.input("attention_mask", INT64, ["batch", "total"])
        positions = self.input("position_ids", INT64, ["batch", "sequence"])
        wanted = self.input("logits_positions", INT64, ["batch", "wanted"])
        for i in range(self.L):
            for name in ("key", "value") if (i, "attn") not in self.skip else ():
                self.input(f"past_key_values.{i}.{name}", self.dtype, ["batch", self.G, "past", self.D])
        with self.scope("mask"):
            for window in dict.fromkeys(self.window(i) for i in range(self.L)):
                self._masks[window] = write_mask(self, ids, padding, window)
        with self.scope("rope"):
            self.cos, self.sin = write_angles(self, self.rope, positions)
        embeddings = self.weight("model.embed_tokens.weight", self.V, self.C)
        x = self.op("Gather", [embeddings, ids], axis=0, label="embed_tokens")
        for i in range(self.L):
            with self.scope(f"layers.{i}"):
                x = self.layer(x, i)
        index = self.op("Unsqueeze", [wanted, self.ints(-1)], label="logits_index")
        x = self.op("GatherND", [x, index], batch_dims=1, label="logits_gather")
        logits = self.head(self.norm(x, self.final_norm))
        self.output(logits, "logits", ["batch", "wanted", self.V])
        present = {name: value for name, value in self.values.items() if name.startswith("present.")}
        for name, value in present.items():
            self.output(value, name, ["batch", self.G, "total", self.D])
        tensor_use.refuse_unread(self.checkpoint, self.read, self.skip)
        return self.finish([logits, *present.values()])

    def layer(self, x: ir.Value, i: int) -> ir.Value:
        """One layer, pre-norm and sequential: x + attention(norm(x)), then x + mlp(norm(x))."""
        prefix = f"model.layers.{i}"
        if (i, "attn") not in self.skip:
            with self.scope("attention"):
                branch = self.attention(self.norm(x, f"{prefix}.input_layernorm"), i)
                x = self.op("Add", [x, branch], label="residual")
        if (i, "mlp") not in self.skip:
            with self.scope("mlp"):
                branch = self.mlp(self.norm(x, f"{prefix}.post_attention_layernorm"), i)
                x = self.op("Add", [x, branch], label="residual")
        return x

    @abstractmethod
    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """Projections, then `attend`, then the output projection: [B, S, C] → [B, S, C]."""

    @abstractmethod
    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""

    def norm(self, x: ir.Value, name: str, size: int = 0) -> ir.Value:
        """RMSNorm with FP32 statistics over the last axis (Zhang & Sennrich 2019, eq. 4).

        Args:
            x: […, size].
            name: of the weight, without '.weight'.
            size: of the last axis; C by default.
        """
        return self.op(
            "RMSNormalization",
            [x, self.weight(f"{name}.weight", size or self.C)],
            axis=-1,
            epsilon=self.config["rms_norm_eps"],
            stash_type=1,
            label=name.rsplit(".", 1)[-1],
        )

    def head(self, x: ir.Value) -> ir.Value:
        """[B, K, C] → [B, K, V], tied to the embedding where the config says so."""
        tied = self.config["tie_word_embeddings"]
        return self.linear(x, "model.embed_tokens" if tied else "lm_head", self.C, self.V, label="lm_head")

    def window(self, i: int) -> int | None:
        """How many keys, itself included, a query of layer i sees; None is all of them."""
        slides = self.config["layer_types"][i] == "sliding_attention"
        return self.config["sliding_window"] if slides else None

    # ---- parts ------------------------------------------------------------------------------------------

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, i: int) -> ir.Value:
        """Rotary embedding, cache and attention on q [B, S, H·D] and k, v [B, S, G·D] → [B, S, H·D]."""
        queries, keys, values = self.heads(q, self.H), self.heads(k, self.G), self.heads(v, self.G)
        return self.attend_heads(queries, keys, values, i)

    def attend_heads(self, queries: ir.Value, keys: ir.Value, values: ir.Value, i: int) -> ir.Value:
        """As `attend`, on q [B, H, S, D] and k, v [B, G, S, D]."""
        queries, keys = self.rotate(queries), self.rotate(keys)
        keys = self.op("Concat", [self.values[f"past_key_values.{i}.key"], keys], axis=2, label="keys")
        values = self.op(
            "Concat", [self.values[f"past_key_values.{i}.value"], values], axis=2, label="values"
        )
        self.values[f"present.{i}.key"], self.values[f"present.{i}.value"] = keys, values
        mask = self._masks[self.window(i)]
        mixed = self.op("Attention", [queries, keys, values, mask], is_causal=0, scale=self.D**-0.5)
        merged = self.op("Transpose", [mixed], perm=[0, 2, 1, 3], label="merge")
        return self.op("Reshape", [merged, self.ints(0, 0, self.H * self.D)], label="merged")

    def heads(self, x: ir.Value, count: int, norm: str | None = None) -> ir.Value:
        """[B, S, count·D] → [B, count, S, D], with an RMSNorm over D in between where `norm` names one."""
        split = self.op("Reshape", [x, self.ints(0, 0, count, self.D)], label="split")
        if norm:
            split = self.norm(split, norm, self.D)
        return self.op("Transpose", [split], perm=[0, 2, 1, 3], label="heads")

    def rotate(self, x: ir.Value) -> ir.Value:
        """Rotary embedding of [B, heads, S, D] (Su et al. 2021, eq. 34), halves not interleaved."""
        rotated = 2 * len(self.rope.frequencies)
        partial = {"rotary_embedding_dim": rotated} if rotated != self.D else {}
        return self.op("RotaryEmbedding", [x, self.cos, self.sin], interleaved=0, **partial, label="rotary")

    def gated_mlp(self, gate: ir.Value, up: ir.Value, down: str, *, bias: bool = False) -> ir.Value:
        """down(SiLU(gate) · up). SiLU as Sigmoid·Mul: opset 24's Swish has no ONNX Runtime kernel.

        Args:
            gate: [B, S, F].
            up: [B, S, F].
            down: name of the projection to C.
            bias: whether the projection has one.
        """
        if (name := self.config["hidden_act"]) not in ("silu", "swish"):
            raise UserError(
                f"{self.checkpoint.folder}: hidden_act {name!r} is not authored for this architecture; "
                "use --from-onnx"
            )
        act = self.op("Mul", [gate, self.op("Sigmoid", [gate])], label="silu")
        return self.linear(self.op("Mul", [act, up], label="gated"), down, self.F, self.C, bias=bias)

    def linear(
        self, x: ir.Value, name: str, width: int, out: int, *, bias: bool = False, label: str = ""
    ) -> ir.Value:
        """The product x · Wᵀ (+ b), W [out, in] as Hugging Face keeps it; runtimes fold the Transpose.

        Args:
            x: […, width].
            name: of the weight, without '.weight'.
            width: in.
            out: out.
            bias: whether it has one.
            label: scope of the nodes; by default the last part of the name.
        """
        with self.scope(label or name.rsplit(".", 1)[-1]):
            weight = self.op("Transpose", [self.weight(f"{name}.weight", out, width)], perm=[1, 0])
            y = self.op("MatMul", [x, weight])
            return self.op("Add", [y, self.weight(f"{name}.bias", out)]) if bias else y
