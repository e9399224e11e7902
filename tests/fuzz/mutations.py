"""A valid file → a hostile one: bytes changed anywhere, or one value of its own format replaced."""

from __future__ import annotations

import json
import math
import random
import re
import struct
from collections.abc import Callable
from typing import Any

from tests.fuzz import gguf_fields, nasty, protobuf

Mutation = Callable[[bytes, random.Random], bytes]
_MARK = "@@hostile@@"
_WORDS = (0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
"""Numbers that stand for counts, lengths and offsets."""


def raw(data: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut, put in, taken out or repeated; more often near the start, where headers lie."""
    size, place = len(data), _place(len(data), draw)
    kind = draw.randrange(7)
    if kind == 0:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            if changed:
                changed[_place(size, draw)] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + draw.randbytes(draw.choice((1, 4, 100))) + data[place:]
    if kind == 3:
        return data[:place] + data[place + draw.choice((1, 4, 100)) :]
    if kind == 4:
        return data[:place] + data[max(0, place - draw.choice((1, 40, 1000))) :]
    if kind == 5:
        number = draw.choice(_WORDS).to_bytes(8, "little")
        return data[:place] + number + data[place + 8 :]
    return draw.choice((b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"null", b"[]", b"{}", b"0")) + (
        data if draw.random() < 0.3 else b""
    )


def _place(size: int, draw: random.Random) -> int:
    return draw.randrange(max(1, min(size, draw.choice((16, 200, 4000, size)) or 1)))


def as_json(data: bytes, draw: random.Random) -> bytes:
    """One value of a JSON document replaced, left out, or named twice."""
    whole = json.loads(data)
    places = list(_places(whole))
    if not places or draw.random() < 0.02:
        return draw.choice(nasty.JSON).encode()
    parent, key = draw.choice(places[:400] if draw.random() < 0.7 else places)
    kind = draw.random()
    if kind < 0.08:
        del parent[key]
        return json.dumps(whole).encode()
    if kind < 0.12 and isinstance(parent, dict):  # the same key twice
        twice = {**parent, f"{_MARK}{key}": parent[key]}
        parent.clear()
        parent.update(twice)
        return json.dumps(whole).replace(_MARK, "").encode()
    if kind < 0.18:  # another value of the same document
        other, name = draw.choice(places)
        parent[key] = json.loads(json.dumps(other[name]))
        return json.dumps(whole).encode()
    if kind < 0.22 and isinstance(parent, dict):
        parent[_MARK] = parent.pop(key)
        return json.dumps(whole).replace(json.dumps(_MARK), draw.choice(_KEYS), 1).encode()
    parent[key] = _MARK
    return json.dumps(whole).replace(json.dumps(_MARK), draw.choice(nasty.JSON), 1).encode()


_KEYS = ('""', '"\\ud800"', '"a.b"', '"' + "x" * 70_000 + '"', '"../x"', '"\\u0000"', '"__class__"')


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a document."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        here = stack.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        for key in keys:
            places.append((here, key))
            stack.append(here[key])
    return places


def as_lines(data: bytes, draw: random.Random) -> bytes:
    """One line of a JSON lines file changed as a document of its own."""
    lines = data.split(b"\n")
    i = draw.randrange(len(lines))
    lines[i] = as_json(lines[i], draw) if lines[i].strip() else draw.choice(nasty.JSON).encode()
    return b"\n".join(lines)


def as_safetensors(data: bytes, draw: random.Random) -> bytes:
    """The header changed as JSON, its length told right; or the length alone changed; or numbers."""
    length = int.from_bytes(data[:8], "little")
    kind = draw.random()
    if kind < 0.1:
        return draw.choice(_WORDS).to_bytes(8, "little") + data[8:]
    if kind < 0.3:
        return _with_odd_numbers(data, 8 + length, draw)
    header = as_json(data[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _with_odd_numbers(data: bytes, start: int, draw: random.Random) -> bytes:
    """Numbers from `start` on, of 32 bits each, replaced: one of them, or a row."""
    changed, count = bytearray(data), (len(data) - start) // 4
    first = draw.randrange(max(1, count))
    for number in range(first, min(count, first + draw.choice((1, 1, 64, 10_000)))):
        struct.pack_into("<f", changed, start + 4 * number, draw.choice(_NUMBERS))
    return bytes(changed)


_NUMBERS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0, -1.0)


def _by_line(values: tuple[str, ...], assignment: re.Pattern[str]) -> Mutation:
    def mutate(data: bytes, draw: random.Random) -> bytes:
        lines = data.decode().split("\n")
        at = [i for i, line in enumerate(lines) if assignment.match(line)]
        i = draw.choice(at)
        kind = draw.random()
        if kind < 0.1:
            del lines[i]
        elif kind < 0.2:
            lines.insert(i, lines[i])
        elif kind < 0.3:
            lines.insert(i, lines[draw.choice(at)])
        else:
            head = assignment.match(lines[i])
            assert head
            lines[i] = head[0] + draw.choice(values)
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    return mutate


as_toml = _by_line(nasty.TOML, re.compile(r"\s*[\w.\"-]+\s*=\s*"))
"""One value of a TOML file replaced, left out, or named twice."""
_as_yaml_line = _by_line(nasty.YAML, re.compile(r"\s*(- )?[\w-]+:\s*"))


def as_yaml(data: bytes, draw: random.Random) -> bytes:
    """One value of a YAML file replaced, left out or named twice; or anchors that multiply."""
    if draw.random() < 0.1:
        return draw.choice(nasty.YAML_WHOLE).encode()
    return _as_yaml_line(data, draw)


FORMATS: dict[str, Mutation] = {
    "json": as_json,
    "jsonl": as_lines,
    "toml": as_toml,
    "yaml": as_yaml,
    "safetensors": as_safetensors,
    "gguf": gguf_fields.mutated,
    "onnx": protobuf.mutated,
    "bytes": raw,
}
"""Name of a format → what changes a value of it."""
