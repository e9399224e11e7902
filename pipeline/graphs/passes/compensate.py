"""Puts the maps of a compensation in the places of skipped sublayers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import ShapeInferencePass

from pipeline.graphs import anatomy, graphfile, reading
from pipeline.graphs.passes.graft import point_at
from pipeline.graphs.passes.skip import SkipPass, bypass
from pipeline.models import compensation, safetensors_index
from pipeline.models.compensation import MapPlace
from pipeline.types import SkipSet, TensorSlice, UserError

_SCOPES = {"attn": "layers.{}/attention", "mlp": "layers.{}/mlp", "block": "layers.{}"}


class CompensatePass(SkipPass):
    """Leaves the sublayers of a skip set out of a base graph, and puts in their places what a file holds.

    A sublayer's map reads what the sublayer read, and joins at its `Add`; a bias alone is added to the stream
    there. The map of a run of layers reads the stream before the run. Skipped sublayers without a map are
    left out. All other tensors of the file are weights, which the graph reads there. The file's SHA-256 goes
    into the model's metadata, as an adapter's does.

    Args:
        skip: what to leave out.
        num_layers: L of the model.
        overlay: the file (`models/compensation.py`), in the graph's folder.
        digest: its SHA-256.
        width: C of the model.

    Raises:
        UserError: a map for what is not skipped, or of another width.
    """

    def __init__(self, skip: SkipSet, num_layers: int, overlay: Path, digest: str, width: int) -> None:
        super().__init__(skip, num_layers)
        self.overlay, self.digest = overlay, digest
        self.tensors = safetensors_index.read_index([overlay])
        self.factors = compensation.places(self.tensors, overlay)
        for place in self.factors:
            compensation.refuse_kept(place, skip, overlay)
            compensation.refuse_width(place, self.tensors[place.tensor("bias")], width, overlay)
        self.places = {place.sublayers[0]: place for place in self.factors}

    def requires(self, model: ir.Model) -> None:
        """As SkipPass. What is looked up in the whole graph is looked up now."""
        super().requires(model)
        self.constants = anatomy.constants(model)
        self.streams = {join.stream for join in self.joins} | {anatomy.stream_before(self.joins[0])}
        self.forms = _inferred(model)

    def call(self, model: ir.Model) -> PassResult:
        """As SkipPass, with the maps; then the weights that the file replaces."""
        super().call(model)
        weights = {name: tensor for name, tensor in self.tensors.items() if not compensation.is_map(name)}
        point_at(model, self.overlay, weights)
        model.metadata_props["compensation_sha256"] = self.digest
        return PassResult(model, modified=True)

    def replace(self, model: ir.Model, join: anatomy.Join) -> None:
        """Puts the sublayer's map in its place; the last sublayer of a run to be replaced is its first."""
        place = self.places.get(join.sublayer)
        if place is None:
            super().replace(model, join)
            return
        add = anatomy.join_node(join.branch)
        if place.kind == "block":
            stream = anatomy.other_operand(add, join.branch)
            scope = _Scope(model, add, place)
            h = stream if self.factors[place] else None
            bypass(model, add, scope.op("Add", [stream, self._write(scope, place, h, stream)], "residual"))
            return
        h = None
        if self.factors[place]:
            h = reading.sublayer_input(model, join, self.streams, self.constants)
        mapped = self._write(_Scope(model, add, place), place, h, join.branch)
        add.replace_input_with(add.inputs.index(join.branch), mapped)

    def ensures(self, model: ir.Model) -> None:
        """As SkipPass, and every map joins the stream in its place."""
        super().ensures(model)
        stages = anatomy.stages(model, self.num_layers, self.skip)
        found = [stage.place for stage in stages if isinstance(stage, anatomy.MapJoin)]
        if found != list(self.factors):
            names = ", ".join(place.name for place in self.factors if place not in found) or "their order"
            raise UserError(f"{self.overlay}: {names} does not join the residual stream as expected")

    def _write(self, scope: _Scope, place: MapPlace, h: ir.Value | None, joined: ir.Value) -> ir.Value:
        """Writes the nodes of a map → what it adds to the stream.

        Args:
            scope: where the nodes go.
            place: of the map.
            h: what it reads; None for a bias alone.
            joined: a value of the stream's form.
        """
        wide = self._type(joined)
        computed = wide if h is None else self._type(h)
        names = [*self.factors[place], place.tensor("bias")]
        *factors, bias = (scope.weight(self.overlay, name, self.tensors[name], computed) for name in names)
        if h is None:
            return bias
        shapes = [self.forms[str(value.name)].shape for value in (h, joined)]
        if None not in shapes and len({len(shape) for shape in shapes if shape}) != 1:
            raise UserError(
                f"{place.name}: what the sublayer reads is flattened and the stream is not, so no map can "
                "stand in for it; take --with bias"
            )
        for factor in factors:
            h = scope.op("MatMul", [h, factor])
        h = scope.op("Add", [h, bias])
        return h if computed == wide else scope.op("Cast", [h], to=wide)

    def _type(self, value: ir.Value) -> ir.DataType:
        """The type of a value's numbers: Gemma's stream is FP32 in graphs of either precision."""
        dtype = self.forms[str(value.name)].dtype
        if dtype is None:
            raise UserError(f"the type of {value.name} cannot be inferred; this graph is not compensated")
        return dtype


def _inferred(model: ir.Model) -> Mapping[str, ir.Value]:
    """Name → value of a copy of the graph whose values have their types and shapes."""
    copy = ir.from_proto(ir.to_proto(model))
    ShapeInferencePass()(copy)
    values = [*copy.graph.inputs, *copy.graph.initializers.values()]
    values += [output for node in copy.graph for output in node.outputs]
    return {str(value.name): value for value in values}


class _Scope:
    """Writes the nodes of one map into a graph; their names are their place.

    Args:
        model: the graph.
        before: they come before this node.
        place: of the map.
    """

    def __init__(self, model: ir.Model, before: ir.Node, place: MapPlace) -> None:
        self.graph, self.before = model.graph, before
        self.prefix = f"/{_SCOPES[place.kind].format(place.first)}/compensation"
        self.names: set[str] = set()

    def op(self, op_type: str, inputs: Sequence[ir.Value], label: str = "", **attributes: Any) -> ir.Value:
        """One node with one output; arguments as GraphBuilder's `op`."""
        place = f"{self.prefix}/{label or op_type}"
        name = place if place not in self.names else f"{place}_1"
        self.names.add(name)
        plain = {key: int(v) for key, v in attributes.items()}
        node = ir.node(op_type, list(inputs), plain, name=name)
        node.outputs[0].name = f"{name}:0"
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def weight(self, file: Path, name: str, tensor: TensorSlice, computed: ir.DataType) -> ir.Value:
        """A tensor of a file, left where it lies, cast by a node to the type that is computed with."""
        value = graphfile.initializer(file, name, tensor)
        self.graph.register_initializer(value)
        if value.dtype == computed:
            return value
        return self.op("Cast", [value], f"{name.rsplit('.', 1)[-1]}/Cast", to=computed)
