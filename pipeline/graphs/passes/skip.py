"""Leaves the sublayers of a skip set out of a base graph."""

from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graphs import anatomy
from pipeline.types import SkipSet, UserError


class SkipPass(InPlacePass):
    """Leaves the sublayers of a skip set out of a base graph.

    Args:
        skip: what to leave out.
        num_layers: L of the model.
    """

    def __init__(self, skip: SkipSet, num_layers: int) -> None:
        super().__init__()
        self.skip = skip
        self.num_layers = num_layers

    def requires(self, model: ir.Model) -> None:
        """Exactly one attention and one MLP join the stream in every layer."""
        self.joins = anatomy.find(model, self.num_layers, SkipSet())

    def call(self, model: ir.Model) -> PassResult:
        """Replaces each skipped sublayer, the last first, then removes what nothing reaches."""
        for join in reversed(self.joins):
            if join.sublayer in self.skip:
                self.replace(model, join)
        _drop_cache_outputs(model, self.skip)
        RemoveUnusedNodesPass()(model)
        _drop_cache_inputs(model, self.skip)
        return PassResult(model, modified=bool(self.skip))

    def replace(self, model: ir.Model, join: anatomy.Join) -> None:
        """Bypasses the sublayer's `Add`: its readers read what the branch was added to."""
        add = anatomy.join_node(join.branch)
        bypass(model, add, anatomy.other_operand(add, join.branch))

    def ensures(self, model: ir.Model) -> None:
        """Just the skipped sublayers are gone, and no cache tensor of theirs is left."""
        anatomy.find(model, self.num_layers, self.skip)
        left = [
            v.name
            for v in (*model.graph.inputs, *model.graph.outputs)
            if _cache_layer(v) in self.skip.attention
        ]
        if left:
            raise UserError(
                f"cache tensor {left[0]} is still used after its attention was left out; "
                "this graph is not cut"
            )


def bypass(model: ir.Model, add: ir.Node, value: ir.Value) -> None:
    """Takes an `Add` out of the graph; a value comes in the place of its output."""
    add.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    # Left in place, the Add would read the branch of its parallel sibling a second time.
    model.graph.remove(add, safe=True)


def _cache_layer(value: ir.Value) -> int | None:
    """Which layer's keys or values a graph input or output holds; None where it is no cache tensor."""
    match = re.fullmatch(r"(?:past_key_values|present)\.(\d+)\.[^.]+", value.name or "")
    return int(match[1]) if match else None


def _drop_cache_outputs(model: ir.Model, skip: SkipSet) -> None:
    for value in [v for v in model.graph.outputs if _cache_layer(v) in skip.attention]:
        model.graph.outputs.remove(value)


def _drop_cache_inputs(model: ir.Model, skip: SkipSet) -> None:
    """Removes the inputs; where a tracer took the mask's length from one, another layer's replaces it."""
    gone = [v for v in model.graph.inputs if _cache_layer(v) in skip.attention]
    heir = next((v for v in model.graph.inputs if _cache_layer(v) is not None and v not in gone), None)
    for value in gone:
        if value.uses() and heir is not None and all(use.node.op_type == "Shape" for use in value.uses()):
            value.replace_all_uses_with(heir)
        if not value.uses():
            model.graph.inputs.remove(value)
