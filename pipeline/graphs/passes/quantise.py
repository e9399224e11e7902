"""Puts quantised weights in the place of a graph's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pipeline.graphs import graphfile
from pipeline.models.quantisation import files
from pipeline.models.quantisation.files import StoredBlocks
from pipeline.types import Precision, UserError

_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


class QuantisePass(InPlacePass):
    """Lets every product with a stored weight read it in blocks, from a file of quantised weights.

    `MatMul(x, Transpose([Cast](W)))` becomes `MatMul(x, DequantizeLinear(values, [Cast](scales)))`, values
    [in, out] and scales [in / B, out]: the one form that ONNX Runtime fuses into its n-bit product and
    TensorRT builds as weight-only. The scales are cast, and not what is dequantised: a Cast behind it would
    keep the product from being fused. Embeddings, norms, biases, a compensation's maps, and what graphs of
    these activations do not read in blocks (`files.in_blocks`) stay as they are.

    The file's SHA-256 goes into the model's metadata, as an adapter's does.

    Args:
        file: of the quantised weights, in the graph's folder.
        digest: its SHA-256.
        names: of initializers → of the weights in the file, where they differ: a tied head is the embedding.
        activations: the graph's precision.

    Raises:
        UserError: the graph is quantised already, or the file lacks a weight of it or has another shape.
    """

    def __init__(self, file: Path, digest: str, names: Mapping[str, str], activations: Precision) -> None:
        super().__init__()
        self.file, self.digest, self.names = file, digest, names
        self.stored = files.stored(file)
        self.read = files.in_blocks(self.stored, activations)

    def requires(self, model: ir.Model) -> None:
        """Nothing is dequantised yet, and some product reads a stored weight."""
        if any(node.op_type == "DequantizeLinear" for node in model.graph):
            raise UserError(f"the weights of {model.graph.name} are quantised already; take the base in fp32")
        if not list(_weights(model)):
            raise UserError(
                f"no product of {model.graph.name} reads a stored weight; only authored graphs do"
            )

    def call(self, model: ir.Model) -> PassResult:
        """Writes the nodes before those that they replace, then removes what nothing reaches."""
        for transpose, weight in list(self._left(model)):
            self._replace(model.graph, transpose, weight)
        RemoveUnusedNodesPass()(model)
        model.metadata_props["quantised_sha256"] = self.digest
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No product reads a weight as it is stored that it is to read in blocks."""
        if left := next(self._left(model), None):
            raise UserError(f"node {left[0].name!r} still reads a weight that is not quantised")

    def _left(self, model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
        """As `_weights`, without those that stay the checkpoint's own."""
        for transpose, weight in _weights(model):
            name = self._name(weight)
            if name in self.read or name not in self.stored:
                yield transpose, weight

    def _name(self, weight: ir.Value) -> str:
        """Of a weight, in the file."""
        return self.names.get(str(weight.name), str(weight.name))

    def _replace(self, graph: ir.Graph, transpose: ir.Node, weight: ir.Value) -> None:
        """Writes what a weight is dequantised by, for the products that read it transposed."""
        name, shape = self._name(weight), weight.shape
        blocks = self.read.get(name)
        if blocks is None or shape is None or blocks.shape != (shape[1], shape[0]):
            raise UserError(f"{self.file} does not hold {name:.200} as the graph reads it; export it again")
        computed = _type(transpose.inputs[0])
        scope = str(transpose.name).rsplit("/", 1)[0]
        values, scales = (
            self._values(name, blocks),
            graphfile.initializer(self.file, f"{name}.scales", blocks.scales),
        )
        for value in (values, scales):
            graph.register_initializer(value)
        if computed != scales.dtype:
            cast = ir.node("Cast", [scales], {"to": int(computed)}, name=f"{scope}/scales/Cast")
            scales = _named(cast, computed, scales.shape)
            graph.insert_before(transpose, cast)
        attributes = {"axis": 0, "block_size": blocks.block_size}
        node = ir.node("DequantizeLinear", [values, scales], attributes, name=f"{scope}/DequantizeLinear")
        dequantised = _named(node, computed, values.shape)
        graph.insert_before(transpose, node)
        transpose.outputs[0].replace_all_uses_with(dequantised)

    def _values(self, name: str, blocks: StoredBlocks) -> ir.Value:
        """The integers [in, out], left where they lie."""
        key, one = f"{name}.values", blocks.values
        form, shape = _TYPES[blocks.bits], ir.Shape(blocks.shape)
        tensor = ir.ExternalTensor(
            one.file, one.offset, one.nbytes, form, shape=shape, name=key, base_dir=self.file.parent
        )
        return ir.Value(name=key, const_value=tensor, type=ir.TensorType(form), shape=shape)


def _named(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    """A node's output, called after it, with its type and its shape."""
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{node.name}:0", ir.TensorType(dtype), shape
    return output


def _type(value: ir.Value | None) -> ir.DataType:
    """What a product computes with: what its weight is cast to, or is stored as."""
    node = value.producer() if value is not None else None
    if node is not None and (to := node.attributes.get_int("to")) is not None:
        return ir.DataType(to)
    assert value is not None and value.dtype is not None, "`_weights` has seen that it is an initializer"
    return value.dtype


def _weights(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """(the Transpose, the initializer) of every stored weight that products read."""
    for node in model.graph:
        perm = node.attributes.get_ints("perm")
        if node.op_type != "Transpose" or perm is None or list(perm) != [1, 0]:
            continue
        value = node.inputs[0]
        if value is not None and (cast := value.producer()) is not None and cast.op_type == "Cast":
            value = cast.inputs[0]
        is_stored = value is not None and isinstance(value.const_value, ir.ExternalTensor)
        uses = [use for use in node.outputs[0].uses() if use.node.op_type == "MatMul" and use.idx == 1]
        if value is not None and is_stored and uses:
            yield node, value
