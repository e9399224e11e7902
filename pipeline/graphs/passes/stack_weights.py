"""Lays weights out as TensorRT-RTX wants them, so that it makes no copies of its own.

Legend: C, F widths, K heads of one product, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

_GIVEN = "given in memory"
"""Where the data of a stack lies, instead of a file's name: nobody reads it from there."""
_FLAT = "flat"


@dataclass(frozen=True, slots=True)
class Stack:
    """A weight that lies in no file as the graph reads it.

    Attributes:
        name: of the initializer.
        parts: tensors of the checkpoint, one below the other.
        dtype: that they are cast to.
    """

    name: str
    parts: tuple[ir.ExternalTensor, ...]
    dtype: ir.DataType

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows of all parts, …]."""
        rows, *others = zip(*(part.shape.numpy() for part in self.parts), strict=True)
        return (sum(rows), *(sizes[0] for sizes in others))

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class _Product:
    """A node x · Wᵀ.

    Attributes:
        node: the MatMul.
        weight: W [out, in], stored in a file or stacked.
        form: products of one input and one form are made one; empty where it stays as it is.
        heads: K, where the product is cut into heads and nothing else.
        end: what the readers behind read: the product, or its heads.
    """

    node: ir.Node
    weight: ir.Value
    form: str
    heads: int
    end: ir.Value

    @property
    def sharing(self) -> tuple[int, str]:
        """Equal for products that are made one."""
        return id(self.node.inputs[0]), self.form


class StackWeightsPass(InPlacePass):
    """Does what TensorRT-RTX does to weights, and for which it holds copies, one for each profile.

    Measured with 1.7.1 (docs/notes.md): weights [out, in] with their Transpose are read where they lie. It
    copies what is cast, and what it makes one product of. So, here:

    1. A cast weight is a weight of the type that it is cast to.
    2. Products of one input, as gate and up [F, C], are one product of stacked weights [2 · F, C], split.
    3. Where all of them are only cut into heads, as q, k and v, they are split into heads [B, K, S, D].

    Products with a bias or a norm before their heads stay as they are. Numbers stay the same.

    Attributes:
        stacks: the weights that the graph lacks now; whoever runs it gives them by name.
        merged_bytes: of weights that TensorRT-RTX will still make one of, in a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stacks: tuple[Stack, ...] = ()
        self.merged_bytes = 0
        self._stacks: dict[str, Stack] = {}

    def call(self, model: ir.Model) -> PassResult:
        """Rewrites casts, then products, and removes what nothing reads any more."""
        graph = model.graph
        for node in [node for node in graph if _casts_weight(node)]:
            weight = node.inputs[0]
            assert weight is not None
            stack = self._stack(graph, [weight], _target(node))
            node.outputs[0].replace_all_uses_with(stack)
            graph.remove(node, safe=True)
        products = [self._product(node) for node in graph if _multiplies_weight(node)]
        for group in _groups(products):
            self._join(graph, group)
        RemoveUnusedNodesPass()(model)
        left = graph.initializers
        self.stacks = tuple(stack for name, stack in self._stacks.items() if name in left)
        self.merged_bytes = _merged_bytes([self._product(node) for node in graph if _multiplies_weight(node)])
        return PassResult(model, modified=bool(self.stacks))

    def ensures(self, model: ir.Model) -> None:
        """No weight is cast any more."""
        assert not any(_casts_weight(node) for node in model.graph)

    def _stack(self, graph: ir.Graph, weights: Sequence[ir.Value], dtype: ir.DataType) -> ir.Value:
        """The initializer of some weights, one below the other, made once."""
        parts = tuple(part for weight in weights for part in self._parts(weight))
        name = "+".join([*(str(part.name) for part in parts), dtype.name])
        if name not in self._stacks:
            stack = self._stacks[name] = Stack(name, parts, dtype)
            shape = ir.Shape(stack.shape)
            tensor = ir.ExternalTensor(_GIVEN, 0, stack.nbytes, dtype, shape=shape, name=name)
            value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=shape)
            graph.register_initializer(value)
        return graph.initializers[name]

    def _parts(self, weight: ir.Value) -> tuple[ir.ExternalTensor, ...]:
        if weight.name in self._stacks:
            return self._stacks[weight.name].parts
        assert isinstance(weight.const_value, ir.ExternalTensor)
        return (weight.const_value,)

    def _product(self, node: ir.Node) -> _Product:
        weight = _weight_of(node)
        assert weight is not None
        out = node.outputs[0]
        if heads := _heads(out):
            return _Product(node, weight, f"heads of {heads[1]}", heads[0], heads[2])
        readers = {use.node.op_type for use in out.uses()}
        plain = not out.is_graph_output() and not readers & {"Add", "Reshape"}
        return _Product(node, weight, _FLAT if plain else "", 0, out)

    def _join(self, graph: ir.Graph, group: Sequence[_Product]) -> None:
        """One product in the place of some; each one's readers read their part of it."""
        first, dtype = group[0].node, group[0].weight.dtype
        assert dtype is not None
        weight = self._stack(graph, [product.weight for product in group], dtype)
        name = f"{first.name}/stacked"
        chain = _Chain(name)
        turned = chain.node("Transpose", [weight], perm=[1, 0])
        value = chain.node("MatMul", [first.inputs[0], turned])
        sizes, axis = [_rows(product.weight) for product in group], -1
        if heads := [product.heads for product in group if product.heads]:
            shape = [0, 0, sum(heads), sum(sizes) // sum(heads)]
            value = chain.node("Reshape", [value, _ints(graph, f"{name}/shape", shape)])
            value = chain.node("Transpose", [value], perm=[0, 2, 1, 3])
            sizes, axis = heads, 1
        split = ir.node(
            "Split",
            [value, _ints(graph, f"{name}/sizes", sizes)],
            {"axis": axis},
            num_outputs=len(group),
            name=f"{name}/Split",
        )
        graph.insert_before(first, [*chain.nodes, split])
        for product, part in zip(group, split.outputs, strict=True):
            part.name = f"{product.end.name}/stacked"
            product.end.replace_all_uses_with(part)


class _Chain:
    """Nodes one behind the other, that no graph has yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[ir.Node] = []

    def node(self, op_type: str, inputs: Sequence[ir.Value | None], perm: Sequence[int] = ()) -> ir.Value:
        """The output of one more node."""
        name = f"{self.name}/{op_type}.{len(self.nodes)}"
        node = ir.node(op_type, inputs, {"perm": list(perm)} if perm else None, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]


def _ints(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(numbers)])
    )
    graph.register_initializer(value)
    return value


def _rows(weight: ir.Value) -> int:
    assert weight.shape is not None
    return int(weight.shape.numpy()[0])


def _is_stored(value: ir.Value | None) -> bool:
    """Whether a value is a weight in a file."""
    return value is not None and value.is_initializer() and isinstance(value.const_value, ir.ExternalTensor)


def _casts_weight(node: ir.Node) -> bool:
    if node.op_type != "Cast" or not _is_stored(node.inputs[0]) or node.outputs[0].is_graph_output():
        return False
    return _target(node) in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _target(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


def _weight_of(node: ir.Node) -> ir.Value | None:
    """W of a node x · Wᵀ; None where it is no such node."""
    right = node.inputs[1] if node.op_type == "MatMul" else None
    turn = right.producer() if right is not None else None
    if turn is None or turn.op_type != "Transpose" or not _is_stored(weight := turn.inputs[0]):
        return None
    return weight if weight is not None and _perm(turn) == (1, 0) else None


def _multiplies_weight(node: ir.Node) -> bool:
    return _weight_of(node) is not None


def _perm(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("perm")
    return tuple(attribute.as_ints()) if attribute is not None else ()


def _heads(out: ir.Value) -> tuple[int, int, ir.Value] | None:
    """K, D and the heads [B, K, S, D] of a product that is cut into heads and not read otherwise."""
    cut = _only_reader(out, "Reshape")
    turn = _only_reader(cut.outputs[0], "Transpose") if cut is not None else None
    if cut is None or turn is None or _perm(turn) != (0, 2, 1, 3) or turn.outputs[0].is_graph_output():
        return None
    shape = ir.convenience.get_const_tensor(cut.inputs[1]) if cut.inputs[1] is not None else None
    numbers = [] if shape is None else [int(number) for number in shape.numpy().ravel()]
    if len(numbers) != 4 or numbers[:2] != [0, 0] or min(numbers[2:]) < 1:
        return None
    return numbers[2], numbers[3], turn.outputs[0]


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads a value, if it is of this type and reads it as its first input."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].idx != 0 or uses[0].node.op_type != op_type:
        return None
    return uses[0].node


def _groups(products: Sequence[_Product]) -> Iterator[list[_Product]]:
    """Products to be made one: of one input, one form and one type.

    A weight that another product reads alone, or beside others, as in a merged graph, would be stored twice:
    its products stay as they are.
    """
    sharing: dict[tuple[int, str], list[_Product]] = {}
    for product in products:
        if product.form:
            sharing.setdefault(product.sharing, []).append(product)
    groups = [group for group in sharing.values() if len(group) > 1]
    groups = [group for group in groups if len({product.weight.dtype for product in group}) == 1]
    beside: dict[int, set[str]] = {}
    for group in groups:
        names = "+".join(str(product.weight.name) for product in group)
        for product in group:
            beside.setdefault(id(product.node), set()).add(names)
    for group in groups:
        readers = {id(node): node for product in group for node in _readers(product.weight)}
        if len(set.union(*(beside.get(reader, {""}) for reader in readers))) == 1:
            yield group


def _readers(weight: ir.Value) -> Iterator[ir.Node]:
    """Nodes that read a weight, or its Transpose."""
    for use in weight.uses():
        if use.node.op_type == "Transpose":
            yield from (behind.node for behind in use.node.outputs[0].uses())
        else:
            yield use.node


def _merged_bytes(products: Sequence[_Product]) -> int:
    """Bytes of the weights whose input other products read too."""
    inputs = [id(product.node.inputs[0]) for product in products]
    weights = {
        product.weight.name: product.weight.const_value.nbytes
        for product in products
        if inputs.count(id(product.node.inputs[0])) > 1 and product.weight.const_value is not None
    }
    return sum(weights.values())
