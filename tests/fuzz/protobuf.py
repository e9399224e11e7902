"""ONNX files with one field of one message replaced."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import onnx

_NUMBERS = (0, 1, -1, 2, 2**31 - 1, -(2**31), 7, 99)
_TEXTS = ("", "a", "../../etc/passwd", "/etc/passwd", "x" * 300, "é漢", "a\0b", "input_ids", "logits", "-1")
_BYTES = (b"", b"\0", b"\xff\xfe", b"x" * 100_000)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One field replaced, cleared, doubled, or exchanged with one of its kind."""
    model = onnx.ModelProto.FromString(data)
    messages = list(_messages(model))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        message = draw.choice(messages[:40] if draw.random() < 0.2 else messages)
        field = draw.choice(list(message.DESCRIPTOR.fields))
        kind = draw.random()
        if kind < 0.2:
            message.ClearField(field.name)
        elif _is_repeated(field):
            _change_list(getattr(message, field.name), field, draw)
        elif field.message_type is not None:
            others = [one for one in messages if one.DESCRIPTOR is field.message_type]
            if others:
                copied = type(others[0])()
                copied.CopyFrom(draw.choice(others))
                getattr(message, field.name).CopyFrom(copied)
        else:
            setattr(message, field.name, _value(field, draw))
    return bytes(model.SerializeToString())


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _messages(message: Any) -> Iterator[Any]:
    """A message and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if _is_repeated(field) else (value,):
                yield from _messages(one)


def _change_list(values: Any, field: Any, draw: random.Random) -> None:
    if field.message_type is not None:
        if len(values) and draw.random() < 0.5:
            copied = type(values[0])()
            copied.CopyFrom(draw.choice(list(values)))
            values.append(copied)
        elif len(values):
            del values[draw.randrange(len(values))]
        else:
            values.add()
    elif len(values) and draw.random() < 0.7:
        values[draw.randrange(len(values))] = _value(field, draw)
    else:
        values.append(_value(field, draw))


def _value(field: Any, draw: random.Random) -> Any:
    """A value of a field that is no message."""
    if field.enum_type is not None:
        return draw.choice([one.number for one in field.enum_type.values])
    if field.cpp_type == field.CPPTYPE_STRING:
        return draw.choice(_BYTES if field.type == field.TYPE_BYTES else _TEXTS)
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return draw.choice((0, 1, 2**31, 2**32 - 1))
    return draw.choice((*_NUMBERS, 2**62, -(2**63)) if field.cpp_type == field.CPPTYPE_INT64 else _NUMBERS)
