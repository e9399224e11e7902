"""Points weights of a graph at another safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from pipeline.graphs import graphfile
from pipeline.models import safetensors_index
from pipeline.types import TensorSlice, UserError


class GraftPass(InPlacePass):
    """Points the weights that a safetensors file holds at that file.

    The file's SHA-256 goes into the model's metadata: two adapters make two graphs, and no check, score or
    engine of the one counts for the other.

    Args:
        healed: the file, in the graph's folder.
        digest: its SHA-256.
    """

    def __init__(self, healed: Path, digest: str) -> None:
        super().__init__()
        self.healed, self.digest = healed, digest

    def call(self, model: ir.Model) -> PassResult:
        """Replaces the initializers' data; a UserError where the graph lacks such a weight."""
        point_at(model, self.healed, safetensors_index.read_index([self.healed]))
        model.metadata_props["healed_sha256"] = self.digest
        return PassResult(model, modified=True)


def point_at(model: ir.Model, file: Path, tensors: Mapping[str, TensorSlice]) -> None:
    """Points weights of a graph at the tensors of these names in a file.

    Args:
        model: the graph.
        file: safetensors in the graph's folder.
        tensors: name → where it lies.

    Raises:
        UserError: the graph lacks such a weight, or has it in another shape or type.
    """
    for name, tensor in tensors.items():
        value = model.graph.initializers.get(name)
        old = value.const_value if value is not None else None
        if (
            value is None
            or old is None
            or tuple(old.shape.numpy()) != tensor.shape
            or graphfile.STORED.get(tensor.dtype) != old.dtype
        ):
            form = f"{tensor.dtype} {list(tensor.shape)}"
            raise UserError(f"{file} holds {name} {form}, and the graph has no such weight")
        value.const_value = graphfile.external(file, name, tensor)
