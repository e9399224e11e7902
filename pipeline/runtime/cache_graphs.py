"""The small ONNX graphs that put caches together where they lie: one cuts rows and tokens, one joins.

They are written as bytes: a Triton model carries this package, and its environment has no `onnx`. Field
numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).

Legend: A, B rows of two caches, G key/value heads, P, Q cached tokens, D head dimension, N tensors of a
cache.
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


def cutting(dtypes: Sequence[np.dtype[np.generic]]) -> bytes:
    """The graph that takes rows and tokens out of a cache.

    Its inputs are `x0` … of [A, G, P, D] each, `rows` int64 [B], and `starts` and `ends` int64 [3], of the
    first three axes; its outputs `y0` … of [B, G, Q, D].

    Args:
        dtypes: of the N tensors.
    """
    nodes, inputs, outputs = list[bytes](), list[bytes](), list[bytes]()
    for i, dtype in enumerate(dtypes):
        nodes.append(_node("Gather", [f"x{i}", "rows"], f"rows{i}", axis=0))
        nodes.append(_node("Slice", [f"rows{i}", "starts", "ends"], f"y{i}"))
        inputs.append(_value(f"x{i}", _TYPES[dtype.name], 4))
        outputs.append(_value(f"y{i}", _TYPES[dtype.name], 4))
    return _model(
        "cut", nodes, [*(_value(name, _INT64, 1) for name in ("rows", "starts", "ends")), *inputs], outputs
    )


def joining(dtypes: Sequence[np.dtype[np.generic]]) -> bytes:
    """The graph that puts the rows of two caches together.

    Its inputs are `a0` … of [A, G, P, D] and `b0` … of [B, G, Q, D] each, and `pads_a` and `pads_b`
    int64 [8], zeros before and after each axis; its outputs `y0` … of [A + B, G, max(P, Q), D].

    Args:
        dtypes: of the N tensors.
    """
    nodes, inputs, outputs = list[bytes](), list[bytes](), list[bytes]()
    for i, dtype in enumerate(dtypes):
        for side in "ab":
            nodes.append(_node("Pad", [f"{side}{i}", f"pads_{side}"], f"padded_{side}{i}"))
            inputs.append(_value(f"{side}{i}", _TYPES[dtype.name], 4))
        nodes.append(_node("Concat", [f"padded_a{i}", f"padded_b{i}"], f"y{i}", axis=0))
        outputs.append(_value(f"y{i}", _TYPES[dtype.name], 4))
    return _model("join", nodes, [*(_value(f"pads_{side}", _INT64, 1) for side in "ab"), *inputs], outputs)


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
