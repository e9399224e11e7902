"""Writes the nodes, inputs and weights of one graph with onnx-ir. No tracing, no torch, no weight read."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graphs import graphfile
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import Precision, TensorSlice, UserError

OPSET, IR_VERSION = 23, 10
INT64 = ir.DataType.INT64
_COMPUTED = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}

Attribute = int | float | str | Sequence[int] | ir.DataType
"""Value of a node's attribute."""


class LacksWeightsError(UserError):
    """A checkpoint lacks a tensor that the graph reads."""


class GraphBuilder:
    """A graph in the making.

    Args:
        checkpoint: where its weights are.
        precision: of the graph; weights stored otherwise get a Cast.

    Attributes:
        dtype: the precision, as onnx-ir has it.
        values: name → the graph's inputs, and the cache's outputs as they are made.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.checkpoint = checkpoint
        self.dtype = _COMPUTED[precision]
        self.values: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self._weights: dict[str, ir.Value] = {}
        self._names: set[str] = set()
        self._scope: list[str] = []

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes that are written inside have names that begin with this one: /layers.5/attention/…"""
        self._scope.append(name)
        yield
        self._scope.pop()

    def op(
        self, op_type: str, inputs: Sequence[ir.Value], *, label: str = "", **attributes: Attribute
    ) -> ir.Value:
        """One node with one output; its name is its place: /layers.5/attention/q_proj/MatMul."""
        return self.ops(op_type, inputs, 1, label=label, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        count: int,
        *,
        label: str = "",
        **attributes: Attribute,
    ) -> Sequence[ir.Value]:
        """One node with `count` outputs.

        Args:
            op_type: of ONNX.
            inputs: of the node.
            count: its outputs.
            label: last part of its name; by default its type.
            attributes: of the node.
        """
        place = "/" + "/".join([*self._scope, label or op_type])
        numbered = itertools.chain([place], (f"{place}_{k}" for k in itertools.count(1)))
        name = next(candidate for candidate in numbered if candidate not in self._names)
        self._names.add(name)
        plain = {key: int(v) if isinstance(v, ir.DataType) else v for key, v in attributes.items()}
        node = ir.node(op_type, list(inputs), plain, num_outputs=count, name=name)
        for k, output in enumerate(node.outputs):
            output.name = f"{name}:{k}"
        self._nodes.append(node)
        return node.outputs

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """An input of the graph; a string in its shape is a symbolic dimension."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        self.values[name] = value
        return value

    def output(self, value: ir.Value, name: str, shape: Sequence[int | str]) -> None:
        """Gives an output its name and its shape, in the graph's precision."""
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
        """A constant vector of int64."""
        return self.constant(np.array(numbers, np.int64), "ints." + "_".join(map(str, numbers)))

    def scalar(self, number: int) -> ir.Value:
        """A constant int64."""
        return self.constant(np.array(number, np.int64), f"int.{number}")

    def number(self, value: float) -> ir.Value:
        """A constant in the graph's precision."""
        return self.constant(np.array(value, self.dtype.numpy()), f"number.{value:.9g}")

    def times(self, x: ir.Value, factor: float, label: str) -> ir.Value:
        """The product x · factor, the factor rounded to the graph's precision; x itself where it is 1."""
        return x if factor == 1 else self.op("Mul", [x, self.number(factor)], label=label)

    @property
    def read(self) -> Collection[str]:
        """Names of the checkpoint's tensors that the graph reads so far."""
        return self._weights.keys()

    def weight(self, name: str, *shape: int, computed: ir.DataType | None = None) -> ir.Value:
        """A tensor of the checkpoint, left where it lies, cast by a node to the type that is computed with.

        Args:
            name: of the tensor.
            shape: that the config implies.
            computed: that type; the graph's precision by default.

        Raises:
            LacksWeightsError: the checkpoint lacks it.
            UserError: its shape or its type is not what the config implies.
        """
        if name in self._weights:
            return self._weights[name]
        tensor, wanted = self._tensor(name, shape), computed or self.dtype
        value = graphfile.initializer(self.checkpoint.folder / tensor.file, name, tensor)
        self._initializers[name] = value
        if value.dtype != wanted:
            with self.scope(name.rsplit(".", 1)[-1]):
                value = self.op("Cast", [value], to=wanted)
        self._weights[name] = value
        return value

    def _tensor(self, name: str, shape: tuple[int, ...]) -> TensorSlice:
        """Where a tensor of the checkpoint lies, after a check of its type and its shape."""
        folder, tensor = self.checkpoint.folder, self.checkpoint.tensors.get(name)
        if tensor is None:
            raise LacksWeightsError(
                f"{folder}: config.json implies the weight {name}, but the checkpoint lacks it"
            )
        if tensor.dtype not in graphfile.STORED:
            raise UserError(
                f"{folder}: config.json implies the weight {name}, but the checkpoint stores it as "
                f"{tensor.dtype}"
            )
        if tensor.shape != shape:
            raise UserError(
                f"{folder}: {name} is {list(tensor.shape)}, but config.json implies {list(shape)}"
            )
        return tensor

    def finish(self, outputs: Sequence[ir.Value]) -> ir.Model:
        """The model, without what no output needs (a mask without any attention, say)."""
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
