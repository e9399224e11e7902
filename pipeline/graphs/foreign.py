"""What an ONNX file from outside must be before anything else looks at it.

Tensors hide in initializers, in attributes of any node, in the bodies of If, Loop and Scan, in functions: so
every message of the file is walked, whatever holds it. `onnx.checker` looks at initializers alone, and lets
data that lies outside, dimensions that multiply to terabytes and cyclic functions pass.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google.protobuf.message
import onnx

from pipeline.types import UserError, first_line

_DIM = 2**40
"""Elements that a dimension has at most."""
_BITS = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT2", "INT2"), 2),
    "COMPLEX128": 128,
}
"""Bits of an element of a type; 8 of those that are not here."""
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_KEYS = {"location", "offset", "length", "checksum"}
_NO_DATA = (".json", ".onnx", ".tmp")
"""Ends of names that are no files of weights: what is written beside a graph has them."""


def read(path: Path) -> onnx.ModelProto:
    """The messages of an ONNX file, none of whose tensors lies, and whose graphs have no cycles.

    Raises:
        UserError: it is no ONNX file, or one of them does.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except google.protobuf.message.DecodeError as error:
        raise UserError(
            f"{path} is not an ONNX file ({first_line(error)}); make it again with `pipeline export`"
        ) from None
    files = _Files(path)
    for message, place in _messages(proto):
        _refuse_bytes(message, place, path)
    for message, place in _messages(proto):
        if isinstance(message, onnx.TensorProto):
            _check_tensor(message, path, files, is_weight=place == ".graph.initializer")
        elif isinstance(message, onnx.SparseTensorProto):
            raise UserError(
                f"{path} holds a sparse tensor, {message.values.name!r:.80}, which no graph here reads"
            )
        elif isinstance(message, onnx.TensorShapeProto.Dimension) and not 0 <= message.dim_value <= _DIM:
            raise UserError(f"{path} has a value with a dimension of {message.dim_value}; that is no size")
        elif isinstance(message, onnx.GraphProto | onnx.FunctionProto):
            _refuse_cycles(message, path)
    _refuse_recursion(proto, path)
    return proto


def _messages(proto: google.protobuf.message.Message) -> Iterator[tuple[Any, str]]:
    """Every message inside one, itself included, with the fields that lead to it: '.graph.node.attribute'."""
    pending = [(proto, "")]
    while pending:
        message, place = pending.pop()
        yield message, place
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                inner = value if isinstance(value, _Repeated) else [value]
                pending.extend((one, f"{place}.{field.name}") for one in inner)


def _refuse_bytes(message: google.protobuf.message.Message, place: str, path: Path) -> None:
    """Refuses text that is not UTF-8, which protobuf hands over as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            lines = [value] if isinstance(value, str | bytes) else value
            if bad := next((line for line in lines if not isinstance(line, str)), None):
                raise UserError(
                    f"{path} has {bad!r:.80} as {place[1:]}.{field.name}, which is not UTF-8 text"
                )


_Repeated = type(onnx.GraphProto().node)


class _Files:
    """The files that hold external data, in the folder of the graph.

    Attributes:
        sizes: name → bytes.
    """

    def __init__(self, graph: Path) -> None:
        self.graph, self.sizes = graph, dict[str, int]()

    def size(self, location: str, tensor: str) -> int:
        """Bytes of a file.

        Raises:
            UserError: it lies outside the folder, or is missing.
        """
        if location not in self.sizes:
            file, start = self.graph.parent / location, f"{self.graph}: weight {tensor!r:.200} points at "
            is_name = Path(location).name == location and location.isprintable() and len(location) < 256
            if not is_name or location in ("", ".", "..") or file.is_symlink():
                raise UserError(f"{start}{location!r:.200}, outside the graph's folder; refused")
            if location.startswith(".") or file.suffix in _NO_DATA:
                raise UserError(f"{start}{location!r}, which is no file of weights; refused")
            if not file.is_file():
                raise UserError(
                    f"{self.graph}: the weights file {file} is missing; "
                    "run the `pipeline export` that made it again"
                )
            self.sizes[location] = file.stat().st_size
        return self.sizes[location]


def _check_tensor(tensor: onnx.TensorProto, path: Path, files: _Files, is_weight: bool) -> None:
    name = f"{path}: tensor {tensor.name!r:.200}"
    types = onnx.TensorProto.DataType
    if tensor.data_type not in types.values() or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise UserError(f"{name} is of type {tensor.data_type}, which ONNX does not have")
    kind, elements = types.Name(tensor.data_type), 1
    for dim in tensor.dims:
        if not 0 <= dim <= _DIM:
            raise UserError(f"{name} has a dimension of {dim}; that is no size")
        elements *= dim
    nbytes = -(-elements * _BITS.get(kind, 8) // 8)
    if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
        if not is_weight or kind == "STRING":
            raise UserError(
                f"{name} has its data in another file, and is no weight of the graph itself; refused"
            )
        _check_external(tensor, nbytes, path, files)
    elif tensor.HasField("raw_data"):
        if kind == "STRING" or len(tensor.raw_data) != nbytes:
            raise UserError(f"{name} holds {len(tensor.raw_data)} bytes where its shape needs {nbytes}")
    else:
        count = sum(len(getattr(tensor, field)) for field in _FIELDS)
        needed = elements * (2 if kind.startswith("COMPLEX") else 1)
        packed = kind in ("UINT4", "INT4", "FLOAT4E2M1", "UINT2", "INT2") and count == nbytes
        if count != needed and not packed:
            raise UserError(f"{name} holds {count} numbers where its shape needs {needed}")


def _check_external(tensor: onnx.TensorProto, nbytes: int, path: Path, files: _Files) -> None:
    """Refuses external data that is not whole in the graph's folder, or not as large as its shape."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in _KEYS or entry.key in entries:
            raise UserError(
                f"{path}: weight {tensor.name!r:.200} says {entry.key!r:.80} of its data: not known, or twice"
            )
        entries[entry.key] = entry.value
    location = entries.get("location", "")
    size = files.size(location, tensor.name)
    offset = _number(entries, "offset", 0, path, tensor.name)
    length = _number(entries, "length", nbytes, path, tensor.name)
    if length != nbytes:
        raise UserError(
            f"{path}: weight {tensor.name!r:.200} has {length} bytes in {location}; its shape needs {nbytes}"
        )
    if offset + length > size:
        raise UserError(
            f"{path}: weight {tensor.name!r:.200} ends beyond {location}: the file is truncated; restore it"
        )


def _number(entries: Mapping[str, str], key: str, default: int, path: Path, name: str) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise UserError(
            f"{path}: weight {name!r:.200} has {text!r:.40} as the {key} of its data, no number of bytes"
        )
    return int(text)


def _refuse_cycles(graph: onnx.GraphProto | onnx.FunctionProto, path: Path) -> None:
    """Refuses a graph in which a node waits for itself; what a body reads, its node reads."""
    producer: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        for output in filter(None, node.output):
            if producer.setdefault(output, number) != number:
                raise UserError(f"{path}: two nodes give {output!r:.200}, the second is {node.name!r:.200}")
    order: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for number, node in enumerate(graph.node):
        order.add(number, *(producer[name] for name in _reads(node) if name in producer))
    try:
        order.prepare()
    except graphlib.CycleError as error:
        names = [f"{graph.node[number].name or graph.node[number].op_type:.80}" for number in error.args[1]]
        raise UserError(f"{path}: the graph has a cycle, through {' → '.join(names[:4])}") from None


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, and those that its bodies read from around it."""
    yield from node.input
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        for message, _ in _messages(node):
            if isinstance(message, onnx.GraphProto):
                own = {output for inner in message.node for output in inner.output}
                own |= {value.name for value in message.input}
                read = {name for inner in message.node for name in inner.input}
                yield from (read | {value.name for value in message.output}) - own


def _refuse_recursion(proto: onnx.ModelProto, path: Path) -> None:
    """Refuses functions that call themselves, through whatever others."""
    functions = {(one.domain, one.name): one for one in proto.functions}
    order: graphlib.TopologicalSorter[tuple[str, str]] = graphlib.TopologicalSorter()
    for key, function in functions.items():
        calls = {(m.domain, m.op_type) for m, _ in _messages(function) if isinstance(m, onnx.NodeProto)}
        order.add(key, *(calls & functions.keys()))
    try:
        order.prepare()
    except graphlib.CycleError as error:
        raise UserError(f"{path}: the function {error.args[1][0][1]!r:.200} calls itself") from None
