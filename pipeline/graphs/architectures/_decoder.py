"""The decoder that every architecture shares, written as ONNX nodes with onnx-ir. No tracing, no torch, no weight read.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, V vocabulary,
H query heads, G key/value heads, D head dimension, L layers, C hidden size, F feed-forward size.

Why the nodes are as they are (one output of Attention, a bool mask, Concat for the cache, …) is in design.md §4: each
other form is refused or, worse, silently misread by TensorRT.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graphs.architectures._rope import rope
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import Precision, SkipSet, UserError

OPSET, IR_VERSION = 23, 10
_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
_GRAPH_DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
_INT64 = ir.DataType.INT64


class Decoder(ABC):
    """Authors one decoder graph. An architecture overrides `attention`, `mlp`, `norm` or `layer` where it differs."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, skip: SkipSet) -> None:
        config = checkpoint.config
        self.checkpoint, self.config, self.skip = checkpoint, config, skip
        self.dtype = _GRAPH_DTYPES[precision]
        self.L, self.H = self.size("num_hidden_layers"), self.size("num_attention_heads")
        self.G = self.size("num_key_value_heads", self.H)
        self.C, self.F, self.V = (
            self.size("hidden_size"),
            self.size("intermediate_size"),
            self.size("vocab_size"),
        )
        self.D = self.size("head_dim", self.C // self.H)
        self.rope = rope(config, self.D)
        skip.within(self.L)
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._weights: dict[str, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._values: dict[str, ir.Value] = {}
        self._masks: dict[int | None, ir.Value] = {}
        self._names: set[str] = set()
        self._scope: list[str] = []

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number of config.json."""
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"{self.checkpoint.folder / 'config.json'}: {key} is {value!r}, not a positive whole number; fetch it again"
            )
        return value

    # ---- the graph --------------------------------------------------------------------------------------------------

    def author(self) -> ir.Model:
        """The whole graph of the contract, sublayers of the skip set left out."""
        ids = self.input("input_ids", _INT64, ["batch", "sequence"])
        padding = self.input("attention_mask", _INT64, ["batch", "total"])
        positions = self.input("position_ids", _INT64, ["batch", "sequence"])
        wanted = self.input("logits_positions", _INT64, ["batch", "wanted"])
        for i in range(self.L):
            for name in ("key", "value") if (i, "attn") not in self.skip else ():
                self.input(f"past_key_values.{i}.{name}", self.dtype, ["batch", self.G, "past", self.D])
        with self.scope("mask"):
            for window in dict.fromkeys(self.window(i) for i in range(self.L)):
                self._masks[window] = self.mask(ids, padding, window)
        with self.scope("rope"):
            self.cos, self.sin = self.angles(positions)
        x = self.op(
            "Gather",
            [self.weight("model.embed_tokens.weight", self.V, self.C), ids],
            axis=0,
            label="embed_tokens",
        )
        for i in range(self.L):
            with self.scope(f"layers.{i}"):
                x = self.layer(x, i)
        index = self.op("Unsqueeze", [wanted, self.ints(-1)], label="logits_index")
        x = self.op("GatherND", [x, index], batch_dims=1, label="logits_gather")
        logits = self.head(self.norm(x, self.final_norm))
        self.output(logits, "logits", ["batch", "wanted", self.V])
        return self.finish(logits)

    def layer(self, x: ir.Value, i: int) -> ir.Value:
        """One layer, pre-norm and sequential: x + attention(norm(x)), then x + mlp(norm(x))."""
        prefix = f"model.layers.{i}"
        if (i, "attn") not in self.skip:
            with self.scope("attention"):
                x = self.op(
                    "Add", [x, self.attention(self.norm(x, f"{prefix}.input_layernorm"), i)], label="residual"
                )
        if (i, "mlp") not in self.skip:
            with self.scope("mlp"):
                x = self.op(
                    "Add",
                    [x, self.mlp(self.norm(x, f"{prefix}.post_attention_layernorm"), i)],
                    label="residual",
                )
        return x

    final_norm = "model.norm"

    @abstractmethod
    def attention(self, x: ir.Value, i: int) -> ir.Value:
        """Projections, then `attend`, then the output projection: [B, S, C] → [B, S, C]."""

    @abstractmethod
    def mlp(self, x: ir.Value, i: int) -> ir.Value:
        """[B, S, C] → [B, S, C]."""

    def norm(self, x: ir.Value, name: str, size: int = 0) -> ir.Value:
        """RMSNorm with FP32 statistics over the last axis."""
        scale = self.weight(f"{name}.weight", size or self.C)
        epsilon = float(self.config["rms_norm_eps"])
        return self.op(
            "RMSNormalization",
            [x, scale],
            axis=-1,
            epsilon=epsilon,
            stash_type=1,
            label=name.rsplit(".", 1)[-1],
        )

    def head(self, x: ir.Value) -> ir.Value:
        """[B, K, C] → [B, K, V], tied to the embedding where the config says so."""
        tied = self.config.get("tie_word_embeddings", False)
        return self.linear(x, "model.embed_tokens" if tied else "lm_head", self.C, self.V, label="lm_head")

    def window(self, i: int) -> int | None:  # noqa: ARG002  (architectures with per-layer windows read i)
        """How many keys, itself included, a query of layer i sees; None is all of them."""
        return None

    # ---- parts ------------------------------------------------------------------------------------------------------

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, i: int) -> ir.Value:
        """Rotary embedding, cache and attention on q [B, S, H·D] and k, v [B, S, G·D] → [B, S, H·D]."""
        queries, keys, values = self.heads(q, self.H), self.heads(k, self.G), self.heads(v, self.G)
        return self.attend_heads(queries, keys, values, i)

    def attend_heads(self, queries: ir.Value, keys: ir.Value, values: ir.Value, i: int) -> ir.Value:
        """As `attend`, on q [B, H, S, D] and k, v [B, G, S, D]."""
        queries, keys = self.rotate(queries), self.rotate(keys)
        keys = self.op("Concat", [self._values[f"past_key_values.{i}.key"], keys], axis=2, label="keys")
        values = self.op(
            "Concat", [self._values[f"past_key_values.{i}.value"], values], axis=2, label="values"
        )
        self._values[f"present.{i}.key"], self._values[f"present.{i}.value"] = keys, values
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
        rotated = 2 * len(self.rope.frequencies)
        partial = {"rotary_embedding_dim": rotated} if rotated != self.D else {}
        return self.op("RotaryEmbedding", [x, self.cos, self.sin], interleaved=0, **partial, label="rotary")

    def angles(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """position_ids [B, S] → cos and sin [B, S, D_rot/2], computed in FP32."""
        frequencies = self.constant(self.rope.frequencies.reshape(1, 1, -1), "rope.frequencies")
        if self.rope.long_frequencies is not None:
            far = self.constant(self.rope.long_frequencies.reshape(1, 1, -1), "rope.long_frequencies")
            last = self.op("ReduceMax", [positions], keepdims=0)
            frequencies = self.op(
                "Where", [self.op("GreaterOrEqual", [last, self.scalar(self.rope.switch)]), far, frequencies]
            )
        position = self.op("Unsqueeze", [self.op("Cast", [positions], to=ir.DataType.FLOAT), self.ints(2)])
        angle = self.op("Mul", [position, frequencies])
        tables = [self.op(name, [angle]) for name in ("Cos", "Sin")]
        if self.rope.factor != 1.0:
            factor = self.constant(np.float32(self.rope.factor), "rope.factor")
            tables = [self.op("Mul", [table, factor]) for table in tables]
        if self.dtype != ir.DataType.FLOAT:
            tables = [self.op("Cast", [table], to=self.dtype) for table in tables]
        return tables[0], tables[1]

    def mask(self, ids: ir.Value, padding: ir.Value, window: int | None) -> ir.Value:
        """The bool mask [B, 1, S, T]: (k ≤ q + P) ∧ (not padding ∨ k = q + P), and k > q + P − window.

        The diagonal keeps a padded row from being fully masked, which would be NaN on some runtimes.
        """
        total = self.op("Squeeze", [self.op("Shape", [padding], start=1, end=2)])
        new = self.op("Squeeze", [self.op("Shape", [ids], start=1, end=2)])
        keys = self.op(
            "Unsqueeze", [self.op("Range", [self.scalar(0), total, self.scalar(1)]), self.ints(0, 1, 2)]
        )
        queries = self.op("Range", [self.op("Sub", [total, new]), total, self.scalar(1)])
        queries = self.op("Unsqueeze", [queries, self.ints(0, 1, 3)])
        kept = self.op("Unsqueeze", [self.op("Cast", [padding], to=ir.DataType.BOOL), self.ints(1, 2)])
        kept = self.op("Or", [kept, self.op("Equal", [keys, queries])])
        mask = self.op("And", [self.op("LessOrEqual", [keys, queries]), kept])
        if window is not None:
            oldest = self.op("Sub", [queries, self.scalar(window)])
            mask = self.op("And", [mask, self.op("Greater", [keys, oldest])])
        return mask

    def gated_mlp(self, gate: ir.Value, up: ir.Value, down: str, *, bias: bool = False) -> ir.Value:
        """down(SiLU(gate) · up). SiLU as Sigmoid·Mul: opset 24's Swish has no ONNX Runtime kernel."""
        if (name := self.config.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise UserError(
                f"{self.checkpoint.folder}: hidden_act {name!r} is not authored for this architecture; use --from-onnx"
            )
        act = self.op("Mul", [gate, self.op("Sigmoid", [gate])], label="silu")
        return self.linear(self.op("Mul", [act, up], label="gated"), down, self.F, self.C, bias=bias)

    def linear(
        self, x: ir.Value, name: str, width: int, out: int, *, bias: bool = False, label: str = ""
    ) -> ir.Value:
        """x · Wᵀ (+ b), W [out, in] as Hugging Face keeps it. ONNX Runtime and TensorRT fold the Transpose at load."""
        with self.scope(label or name.rsplit(".", 1)[-1]):
            weight = self.op("Transpose", [self.weight(f"{name}.weight", out, width)], perm=[1, 0])
            y = self.op("MatMul", [x, weight])
            return self.op("Add", [y, self.weight(f"{name}.bias", out)]) if bias else y

    # ---- building blocks --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self._scope.append(name)
        yield
        self._scope.pop()

    def op(self, op_type: str, inputs: Sequence[ir.Value], *, label: str = "", **attributes: Any) -> ir.Value:
        """One node with one output; its name is its place: /layers.5/attention/q_proj/MatMul."""
        return self.ops(op_type, inputs, 1, label=label, **attributes)[0]

    def ops(
        self, op_type: str, inputs: Sequence[ir.Value], count: int, *, label: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        place = "/" + "/".join([*self._scope, label or op_type])
        name = next(
            n
            for n in itertools.chain([place], (f"{place}_{k}" for k in itertools.count(1)))
            if n not in self._names
        )
        self._names.add(name)
        attributes = {k: int(v) if isinstance(v, ir.DataType) else v for k, v in attributes.items()}
        node = ir.node(op_type, list(inputs), attributes, num_outputs=count, name=name)
        for k, output in enumerate(node.outputs):
            output.name = f"{name}:{k}"
        self._nodes.append(node)
        return node.outputs

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        self._values[name] = value
        return value

    def output(self, value: ir.Value, name: str, shape: Sequence[int | str]) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(self.dtype), ir.Shape(shape)

    def constant(self, array: npt.ArrayLike, name: str) -> ir.Value:
        """A small tensor inside the graph file; the same name is the same tensor."""
        if name not in self._initializers:
            tensor = ir.tensor(np.asarray(array), name=name)
            self._initializers[name] = ir.Value(
                name=name,
                const_value=tensor,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(np.shape(array)),
            )
        return self._initializers[name]

    def ints(self, *numbers: int) -> ir.Value:
        return self.constant(np.array(numbers, np.int64), "ints." + "_".join(map(str, numbers)))

    def scalar(self, number: int) -> ir.Value:
        return self.constant(np.array(number, np.int64), f"int.{number}")

    def weight(self, name: str, *shape: int) -> ir.Value:
        """A tensor of the checkpoint, left where it lies, cast to the graph's precision by a node.

        Raises:
            UserError: the checkpoint lacks it, or its shape is not what the config implies.
        """
        if name in self._weights:
            return self._weights[name]
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None or tensor.dtype not in _DTYPES:
            what = f"stores it as {tensor.dtype}" if tensor else "lacks it"
            raise UserError(
                f"{self.checkpoint.folder}: config.json implies the weight {name}, but the checkpoint {what}"
            )
        if tensor.shape != shape:
            raise UserError(
                f"{self.checkpoint.folder}: {name} is {list(tensor.shape)}, but config.json implies {list(shape)}"
            )
        dtype = _DTYPES[tensor.dtype]
        external = ir.ExternalTensor(
            tensor.file,
            tensor.offset,
            tensor.nbytes,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self.checkpoint.folder,
        )
        value = ir.Value(name=name, const_value=external, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._initializers[name] = value
        if dtype != self.dtype:
            with self.scope(name.rsplit(".", 1)[-1]):
                value = self.op("Cast", [value], to=self.dtype)
        self._weights[name] = value
        return value

    def finish(self, logits: ir.Value) -> ir.Model:
        """The model: cache outputs named, what nothing reaches removed (a mask without any attention, say)."""
        outputs = [logits]
        for name, value in self._values.items():
            if name.startswith("present."):
                self.output(value, name, ["batch", self.G, "total", self.D])
                outputs.append(value)
        graph = ir.Graph(
            self._inputs,
            outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET},
            name=self.checkpoint.model,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="skip-pipeline")
        RemoveUnusedNodesPass()(model)
        return model
