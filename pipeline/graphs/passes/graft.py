"""Points weights of a graph at another safetensors file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from pipeline.models import safetensors_index
from pipeline.types import UserError


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
        for name, tensor in safetensors_index.read_index([self.healed]).items():
            value = model.graph.initializers.get(name)
            old = value.const_value if value is not None else None
            if value is None or old is None or tuple(old.shape.numpy()) != tensor.shape:
                raise UserError(
                    f"{self.healed} holds {name} {list(tensor.shape)}, and the graph has no such weight"
                )
            value.const_value = ir.ExternalTensor(
                tensor.file,
                tensor.offset,
                tensor.nbytes,
                old.dtype,
                shape=ir.Shape(tensor.shape),
                name=name,
                base_dir=self.healed.parent,
            )
        model.metadata_props["healed_sha256"] = self.digest
        return PassResult(model, modified=True)
