"""Small ONNX graphs that put caches together where they lie: one operator each, on every tensor of a cache.

They are written as bytes: a Triton model carries this package, and its environment has no `onnx`. Field
numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).

Legend: A, B rows of two caches, G key/value heads, P cached tokens, D head dimension, N tensors of a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_IR_VERSION, _OPSET = 8, 18
"""Old ones: kernels for them are in every ONNX Runtime that is supported, on the CPU and on CUDA."""
_FLOAT, _INT64, _FLOAT16 = 1, 7, 10
"""TensorProto.DataType."""
_TYPES = {"float32": _FLOAT, "float16": _FLOAT16}
_INT = 2
"""AttributeProto.AttributeType."""


_FORMS: dict[str, tuple[str, str, tuple[str, ...], dict[str, int]]] = {
    "rows": ("Gather", "x", ("rows",), {"axis": 0}),
    "tokens": ("Slice", "x", ("starts", "ends"), {}),
    "pad": ("Pad", "x", ("pads",), {}),
    "join": ("Concat", "ab", (), {"axis": 0}),
}
"""Name → operator, one letter for each cache that it reads, its other inputs, its attributes."""


def graph(form: str, dtypes: Sequence[np.dtype[np.generic]]) -> bytes:
    """A graph whose outputs are `y0` … `y{N-1}`.

    Args:
        form: 'rows' takes rows out of `x0` … of [A, G, P, D] each, by `rows` int64 [B]; 'tokens' takes tokens
            out of them, by `starts` and `ends` int64 [3], of the first three axes; 'pad' puts zeros before or
            behind, as many as `pads` int64 [8] says; 'join' puts the rows of `b0` … behind those of `a0` ….
        dtypes: of the N tensors.
    """
    op_type, letters, numbers, attributes = _FORMS[form]
    nodes, inputs, outputs = list[bytes](), [_value(name, _INT64, 1) for name in numbers], list[bytes]()
    for i, dtype in enumerate(dtypes):
        tensors = [f"{letter}{i}" for letter in letters]
        nodes.append(_node(op_type, [*tensors, *numbers], f"y{i}", **attributes))
        inputs += [_value(name, _TYPES[dtype.name], 4) for name in tensors]
        outputs.append(_value(f"y{i}", _TYPES[dtype.name], 4))
    return _model(form, nodes, inputs, outputs)


def _model(name: str, nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    graph = [_field(1, node) for node in nodes]
    graph += [
        _field(2, name),
        *(_field(11, value) for value in inputs),
        *(_field(12, value) for value in outputs),
    ]
    opset = _field(8, _field(1, "") + _field(2, _OPSET))
    return _field(1, _IR_VERSION) + _field(7, b"".join(graph)) + opset


def _node(op_type: str, inputs: Sequence[str], output: str, **integers: int) -> bytes:
    attributes = [
        _field(5, _field(1, name) + _field(3, value) + _field(20, _INT)) for name, value in integers.items()
    ]
    names = [*(_field(1, name) for name in inputs), _field(2, output), _field(3, output)]
    return b"".join([*names, _field(4, op_type), *attributes])


def _value(name: str, element: int, rank: int) -> bytes:
    """A ValueInfoProto; no dimension is known."""
    shape = b"".join(_field(1, b"") for _ in range(rank))
    return _field(1, name) + _field(2, _field(1, _field(1, element) + _field(2, shape)))


def _field(number: int, value: bytes | str | int) -> bytes:
    """A field of a protobuf message (https://protobuf.dev/programming-guides/encoding/)."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])
