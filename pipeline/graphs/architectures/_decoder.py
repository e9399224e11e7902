"""The decoder that every architecture shares, written as ONNX nodes.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, V vocabulary,
H query heads, G key/value heads, D head dimension, L layers, C hidden size, F feed-forward size.

The nodes have the one form that ONNX Runtime and TensorRT both compute correctly: `Attention` with one
output, a bool mask, `Concat` for the cache (docs/architecture.md, "The graph contract"). TensorRT refuses
other forms or, worse, misreads them silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import onnx_ir as ir

from pipeline.graphs.architectures._builder import INT64, GraphBuilder
from pipeline.graphs.architectures._positions import write_angles, write_mask
from pipeline.models import tensor_use
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.rope import Rope, rope
from pipeline.models.sizes import rules_of
from pipeline.types import Precision, SkipSet, UserError

_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}
"""Name of an activation in transformers → ONNX's name of the approximation."""


class Decoder(GraphBuilder, ABC):
    """Authors one decoder graph. An architecture gives `attention` and `mlp`, and overrides what differs.

    Args:
        checkpoint: config and weights.
        precision: of the graph.
        skip: sublayers that are not written.

    Raises:
        UserError: a layer of the skip set does not exist, or the rope is not authored.
    """

    activation_key = "hidden_act"
    """The config's key of the MLP's activation."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, skip: SkipSet) -> None:
        super().__init__(checkpoint, precision)
        self.config, self.skip = checkpoint.config, skip
        self.L, self.V = self.config["num_hidden_layers"], self.config["vocab_size"]
        self.H, self.G = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self.C, self.F = self.config["hidden_size"], self.config["intermediate_size"]
        self.D = self.config["head_dim"]
        self.ropes = self.layer_ropes()
        self.rules = rules_of(self.config["model_type"])
        skip.within(self.L)
        self._masks: dict[int | None, ir.Value] = {}
        self._angles: dict[Rope, tuple[ir.Value, ir.Value]] = {}

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
        for table in dict.fromkeys(self.ropes):
            if table is not None:
                with self.scope(table.name):
                    self._angles[table] = write_angles(self, table, positions)
        x = self.embed(ids)
        for i in range(self.L):
            with self.scope(f"layers.{i}"):
                x = self.layer(x, i)
        index = self.op("Unsqueeze", [wanted, self.ints(-1)], label="logits_index")
        x = self.op("GatherND", [x, index], batch_dims=1, label="logits_gather")
        logits = self.head(self.norm(x, self.rules.final_norm))
        self.output(logits, "logits", ["batch", "wanted", self.V])
        present = {name: value for name, value in self.values.items() if name.startswith("present.")}
        for name, value in present.items():
            self.output(value, name, ["batch", self.G, "total", self.D])
        tensor_use.refuse_unread(self.checkpoint, self.read, self.skip)
        return self.finish([logits, *present.values()])

    def layer(self, x: ir.Value, i: int) -> ir.Value:
        """One layer, sequential: x + attention(norm(x)), then x + mlp(norm(x)).

        Where an architecture has a norm behind a sublayer, that is within the branch: x + norm(mlp(norm(x))).
        """
        if (i, "attn") not in self.skip:
            with self.scope("attention"):
                x = self.joined(x, i, self.attention, self.rules.attention_norms)
        if (i, "mlp") not in self.skip:
            with self.scope("mlp"):
                x = self.joined(x, i, self.mlp, self.rules.mlp_norms)
        return x

    def joined(
        self,
        x: ir.Value,
        i: int,
        write: Callable[[ir.Value, int], ir.Value],
        norms: tuple[str | None, str | None],
    ) -> ir.Value:
        """The stream with one sublayer's branch added.

        Args:
            x: the stream [B, S, C].
            i: layer.
            write: `attention` or `mlp`.
            norms: the sublayer's, before it and behind it.
        """
        before, after = (norm and f"{self.rules.layers}.{i}.{norm}" for norm in norms)
        branch = write(self.norm(x, before) if before else x, i)
        return self.op("Add", [x, self.norm(branch, after) if after else branch], label="residual")

    def embed(self, ids: ir.Value) -> ir.Value:
        """[B, S] → [B, S, C]."""
        embeddings = self.weight(f"{self.rules.embedding}.weight", self.V, self.C)
        return self.op("Gather", [embeddings, ids], axis=0, label="embed_tokens")

    @abstractmethod
    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """Projections, then `attend`, then the output projection: [B, S, C] → [B, S, C]."""

    @abstractmethod
    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""

    def norm(self, x: ir.Value, name: str, size: int = 0) -> ir.Value:
        """RMSNorm (Zhang & Sennrich 2019, eq. 4) or LayerNorm (Ba et al. 2016), with FP32 statistics.

        Args:
            x: […, size]; the last axis is normed.
            name: of the weights, without '.weight' and '.bias'.
            size: of the last axis; C by default.
        """
        inputs = [x, self.weight(f"{name}.weight", size or self.C)]
        op_type, epsilon = "RMSNormalization", "rms_norm_eps"
        if self.rules.layer_norms:
            inputs.append(self.weight(f"{name}.bias", size or self.C))
            op_type, epsilon = "LayerNormalization", "layer_norm_eps"
        label = name.rsplit(".", 1)[-1]
        return self.op(op_type, inputs, axis=-1, epsilon=self.config[epsilon], stash_type=1, label=label)

    def head(self, x: ir.Value) -> ir.Value:
        """[B, K, C] → [B, K, V], tied to the embedding where the config says so."""
        name = self.rules.embedding if self.config["tie_word_embeddings"] else self.rules.head
        return self.linear(x, name, self.C, self.V, label="lm_head")

    def window(self, i: int) -> int | None:
        """How many keys, itself included, a query of layer i sees; None is all of them."""
        slides = self.config["layer_types"][i] == "sliding_attention"
        return self.config["sliding_window"] if slides else None

    def layer_ropes(self) -> Sequence[Rope | None]:
        """The rotary embedding of each layer, None where it has none; the same object is one table."""
        return [rope(self.config)] * self.L

    @property
    def attention_scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return float(self.D**-0.5)

    # ---- parts ------------------------------------------------------------------------------------------

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, i: int) -> ir.Value:
        """Rotary embedding, cache and attention on q [B, S, H·D] and k, v [B, S, G·D] → [B, S, H·D]."""
        queries, keys, values = self.heads(q, self.H), self.heads(k, self.G), self.heads(v, self.G)
        return self.attend_heads(queries, keys, values, i)

    def attend_heads(self, queries: ir.Value, keys: ir.Value, values: ir.Value, i: int) -> ir.Value:
        """As `attend`, on q [B, H, S, D] and k, v [B, G, S, D]."""
        queries, keys = self.rotate(queries, i), self.rotate(keys, i)
        keys = self.op("Concat", [self.values[f"past_key_values.{i}.key"], keys], axis=2, label="keys")
        values = self.op(
            "Concat", [self.values[f"past_key_values.{i}.value"], values], axis=2, label="values"
        )
        self.values[f"present.{i}.key"], self.values[f"present.{i}.value"] = keys, values
        mixed = self.mix(queries, keys, values, self._masks[self.window(i)])
        merged = self.op("Transpose", [mixed], perm=[0, 2, 1, 3], label="merge")
        return self.op("Reshape", [merged, self.ints(0, 0, self.H * self.D)], label="merged")

    def heads(self, x: ir.Value, count: int, norm: str | None = None) -> ir.Value:
        """[B, S, count·D] → [B, count, S, D], with an RMSNorm over D in between where `norm` names one."""
        split = self.op("Reshape", [x, self.ints(0, 0, count, self.D)], label="split")
        if norm:
            split = self.norm(split, norm, self.D)
        return self.op("Transpose", [split], perm=[0, 2, 1, 3], label="heads")

    def mix(self, queries: ir.Value, keys: ir.Value, values: ir.Value, mask: ir.Value) -> ir.Value:
        """Attention on [B, H, S, D] and two [B, G, T, D] under a mask [B, 1, S, T] → [B, H, S, D]."""
        inputs = [queries, keys, values, mask]
        return self.op("Attention", inputs, is_causal=0, scale=self.attention_scale)

    def rotate(self, x: ir.Value, i: int) -> ir.Value:
        """Rotary embedding of [B, heads, S, D] (Su et al. 2021, eq. 34), halves not interleaved."""
        if (rope := self.ropes[i]) is None:
            return x
        rotated = 2 * len(rope.frequencies)
        partial = {"rotary_embedding_dim": rotated} if rotated != self.D else {}
        inputs = [x, *self._angles[rope]]
        return self.op("RotaryEmbedding", inputs, interleaved=0, **partial, label="rotary")

    def activation(self, x: ir.Value) -> ir.Value:
        """The MLP's activation. SiLU as Sigmoid·Mul: opset 24's Swish has no ONNX Runtime kernel.

        Raises:
            UserError: the config names another one.
        """
        name = self.config[self.activation_key]
        if name in ("silu", "swish"):
            return self.op("Mul", [x, self.op("Sigmoid", [x])], label="silu")
        if name in _GELU:
            return self.op("Gelu", [x], approximate=_GELU[name])
        raise UserError(
            f"{self.checkpoint.folder}: {self.activation_key} {name!r:.60} is not authored for this "
            "architecture; use --from-onnx"
        )

    def gated_mlp(self, gate: ir.Value, up: ir.Value, down: str, *, bias: bool = False) -> ir.Value:
        """down(activation(gate) · up).

        Args:
            gate: [B, S, F].
            up: [B, S, F].
            down: name of the projection to C.
            bias: whether the projection has one.
        """
        gated = self.op("Mul", [self.activation(gate), up], label="gated")
        return self.linear(gated, down, self.F, self.C, bias=bias)

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
