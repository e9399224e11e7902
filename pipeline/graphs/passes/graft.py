"""Points weights of a graph at another safetensors file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from pipeline.models import safetensors_index
from pipeline.types import UserError


class GraftPass(InPlacePass):
    """Points the weights that a safetensors file holds at that file.

    Its SHA-256, `digest`, goes into the model's metadata: another adapter makes another graph, and no check, score or engine of
    the one passes for the other's.
    """

    def __init__(self, healed: Path, digest: str) -> None:
        super().__init__()
        self.healed, self.digest = healed, digest

    def call(self, model: ir.Model) -> PassResult:
        for name, tensor in safetensors_index.read_index([self.healed]).items():
            value = model.graph.initializers.get(name)
            if (
                value is None
                or value.const_value is None
                or tuple(value.const_value.shape.numpy()) != tensor.shape
            ):
                raise UserError(
                    f"{self.healed} holds {name} {list(tensor.shape)}, and the graph has no such weight"
                )
            value.const_value = ir.ExternalTensor(
                tensor.file, tensor.offset, tensor.nbytes, value.const_value.dtype, shape=ir.Shape(tensor.shape), name=name,
                base_dir=self.healed.parent,
            )  # fmt: skip
        model.metadata_props["healed_sha256"] = self.digest
        return PassResult(model, modified=True)
