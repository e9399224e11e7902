"""A graph and its weights as TensorRT-RTX reads them without copies: from mapped files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pipeline.graphs.passes.stack_weights import Stack, StackWeightsPass
from pipeline.runtime.runner import Array

_PIECE = 2**25
"""Numbers that are cast at once."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A graph for TensorRT-RTX.

    Attributes:
        model: the graph.
        stacks: weights that it reads and that lie in no file as it reads them.
        weight_bytes: of all weights, as they are read.
        merged_bytes: of those that TensorRT-RTX copies all the same; it turns those of 4 bits.
    """

    model: ir.Model
    stacks: tuple[Stack, ...]
    weight_bytes: int
    merged_bytes: int

    @property
    def stacked_bytes(self) -> int:
        """Of the stacks."""
        return sum(stack.nbytes for stack in self.stacks)


@dataclass(frozen=True, slots=True)
class Source:
    """What a parser reads instead of a graph's file.

    Attributes:
        proto: the serialised graph.
        weights: name → bytes, mapped; the parser and its network read them until the build ends.
    """

    proto: bytes
    weights: Mapping[str, Array]


def laid_out(model: ir.Model) -> Layout:
    """The layout of a graph, which is rewritten."""
    stacking = StackWeightsPass()
    stacking(model)
    values = (value.const_value for value in model.graph.initializers.values())
    tensors = [tensor for tensor in values if tensor is not None]
    turned_bytes = sum(tensor.nbytes for tensor in tensors if tensor.dtype == ir.DataType.INT4)
    weight_bytes = sum(tensor.nbytes for tensor in tensors)
    return Layout(model, stacking.stacks, weight_bytes, stacking.merged_bytes + turned_bytes)


def shared_blocks(model: ir.Model) -> str | None:
    """A weight of 4 bits that several nodes read, as above the fork of a merged graph; None: there is none.

    TensorRT-RTX 1.7.1 was seen to end with SIGSEGV there (docs/notes.md).
    """
    for node in model.graph:
        values = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if values is not None and values.dtype == ir.DataType.INT4 and len(node.outputs[0].uses()) > 1:
            return values.name
    return None


@contextlib.contextmanager
def written(layout: Layout, folder: Path) -> Iterator[Source]:
    """Writes the stacks into a file without a name, which is gone when this ends, however it ends.

    Args:
        layout: of the graph.
        folder: where there is room for `stacked_bytes`.
    """
    proto = ir.to_proto(layout.model).SerializeToString()
    with tempfile.TemporaryFile(dir=folder) as file:
        places = {}
        for stack in layout.stacks:
            places[stack.name] = slice(file.tell(), file.tell() + stack.nbytes)
            for part in stack.parts:
                for piece in _pieces(part):
                    file.write(_cast(piece, stack.dtype).view(np.uint8).data)
        file.flush()
        whole = np.memmap(file, np.uint8, "r") if places else np.empty(0, np.uint8)
        yield Source(proto, {name: whole[place] for name, place in places.items()})


def _cast(array: Array, dtype: ir.DataType) -> Array:
    """As a node Cast has it: beyond fp16's largest number is infinity."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype.numpy())


def _pieces(tensor: ir.ExternalTensor) -> Iterator[Array]:
    """A tensor of the checkpoint, flat, a piece at a time; onnx-ir refuses files with two hard links."""
    count = tensor.shape.numpy()
    stored = np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, (int(np.prod(count)),))
    for start in range(0, len(stored), _PIECE):
        yield stored[start : start + _PIECE]
