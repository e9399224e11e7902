"""Makes a graph give the logits of every position."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.types import UserError


class AllLogitsPass(InPlacePass):
    """Takes `logits_positions` out: the head reads every position."""

    def call(self, model: ir.Model) -> PassResult:
        """Every reader of the gathered positions reads the whole sequence."""
        logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
        if logits is None or logits.shape is None or len(logits.shape) != 3:
            raise UserError(
                "the graph has no logits of three dimensions; make it again with `pipeline export`"
            )
        gather = next((node for node in model.graph if node.op_type == "GatherND"), None)
        positions = next((value for value in model.graph.inputs if value.name == "logits_positions"), None)
        if gather is None or positions is None or gather.inputs[0] is None:
            raise UserError("the graph has no logits_positions to take out")
        gather.outputs[0].replace_all_uses_with(gather.inputs[0])
        RemoveUnusedNodesPass()(model)
        model.graph.inputs.remove(positions)
        logits.shape = ir.Shape(["batch", "sequence", logits.shape[2]])
        return PassResult(model, modified=True)
