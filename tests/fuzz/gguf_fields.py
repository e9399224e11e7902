"""GGUF files with one key or one tensor's entry replaced, whatever a writer would let through."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_BIG = (0, 1, 3, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Parts:
    """A file taken apart: keys as (name, type and value), tensors as (name, sizes, kind, offset), data."""

    keys: list[tuple[bytes, bytes]]
    tensors: list[tuple[bytes, tuple[int, ...], int, int]]
    data: bytes

    def joined(self) -> bytes:
        """The file again."""
        out = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))]
        for name, value in self.keys:
            out += [_text(name), value]
        for name, sizes, kind, offset in self.tensors:
            out += [_text(name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)]
        head = b"".join(out)
        return head + bytes(-len(head) % 32) + self.data


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def parts(data: bytes) -> Parts:
    """A valid file taken apart."""
    place = 24

    def take(count: int) -> bytes:
        nonlocal place
        place += count
        return data[place - count : place]

    def number(code: str) -> int:
        return int(struct.unpack(f"<{code}", take(struct.calcsize(f"<{code}")))[0])

    def value(kind: int) -> None:
        if kind == _STRING:
            take(number("Q"))
        elif kind == _ARRAY:
            inner, count = number("I"), number("Q")
            for _ in range(count if inner == _STRING else 0):
                take(number("Q"))
            take(0 if inner == _STRING else count * _WIDTHS[inner])
        else:
            take(_WIDTHS[kind])

    tensors_count, keys_count = struct.unpack("<QQ", data[8:24])
    keys = []
    for _ in range(keys_count):
        name, start = take(number("Q")), place
        value(number("I"))
        keys.append((name, data[start:place]))
    tensors = []
    for _ in range(tensors_count):
        name = take(number("Q"))
        sizes = tuple(number("Q") for _ in range(number("I")))
        tensors.append((name, sizes, number("I"), number("Q")))
    return Parts(keys, tensors, data[-(-place // 32) * 32 :])


def _array(inner: int, *values: bytes, count: int | None = None) -> bytes:
    return struct.pack("<IIQ", _ARRAY, inner, len(values) if count is None else count) + b"".join(values)


def values() -> list[bytes]:
    """Types with values that a key may be given."""
    floats = [float("nan"), float("inf"), -1.0, 0.0, 0.5, 1e-30, 3e38]
    found = [struct.pack("<If", 6, number) for number in floats]
    found += [struct.pack("<Id", 12, number) for number in floats]
    found += [struct.pack("<II", 4, number) for number in _BIG]
    found += [struct.pack("<Ii", 5, -1), struct.pack("<IQ", 10, 2**63), struct.pack("<Iq", 11, -(2**63))]
    found += [struct.pack("<IB", 7, 1), struct.pack("<IB", 7, 2), struct.pack("<I", 99)]
    texts = [b"", b"a", b"\xff\xfe", b"\0", b"../../etc/passwd", b"x" * (1 << 20), "é漢".encode()]
    found += [struct.pack("<I", _STRING) + _text(text) for text in texts]
    four, two = struct.pack("<I", 4), struct.pack("<I", 2)
    found += [_array(4), _array(4, four), _array(4, two, two), _array(4, four, two, count=2**60)]
    found += [_array(5, struct.pack("<i", -1)), _array(6, struct.pack("<f", float("nan")))]
    found += [
        _array(7, b"\1", b"\0"),
        _array(_STRING, _text(b"a"), _text(b"a")),
        _array(_STRING, _text(b"\xff")),
    ]
    return [*found, _array(_ARRAY, count=3), _array(4, *([two] * 70_000))]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One key's value, or one tensor's entry, replaced, left out, doubled, or exchanged with another's."""
    whole = parts(data)
    keys, tensors = list(whole.keys), list(whole.tensors)
    if draw.random() < 0.65:
        i = draw.randrange(len(keys))
        kind = draw.random()
        if kind < 0.1:
            del keys[i]
        elif kind < 0.15:
            keys.insert(i, keys[i])
        elif kind < 0.2:
            keys[i] = (draw.choice((b"", b"\xff", b"a" * 300, b"llama.unknown")), keys[i][1])
        elif kind < 0.3:
            keys[i] = (keys[i][0], draw.choice(keys)[1])
        else:
            keys[i] = (keys[i][0], draw.choice(values()))
    else:
        i = draw.randrange(len(tensors))
        tensors[i : i + 1] = _entries(tensors[i], draw)
    return replace(whole, keys=keys, tensors=tensors).joined()


def _entries(
    entry: tuple[bytes, tuple[int, ...], int, int], draw: random.Random
) -> list[tuple[bytes, tuple[int, ...], int, int]]:
    """What stands in the place of one tensor's entry."""
    name, sizes, kind, offset = entry
    sides = (0, 1, 31, 2**31, 2**40, 2**63, 2**64 - 1)
    i = draw.randrange(len(sizes))
    return draw.choice((
        [],
        [entry, entry],
        [(draw.choice((b"", b"\xff", b"x" * 300, b"blk.99.attn_q.weight", b"a\0b")), sizes, kind, offset)],
        [(name, (*sizes[:i], draw.choice(sides), *sizes[i + 1 :]), kind, offset)],
        [(name, tuple(reversed(sizes)), kind, offset)],
        [(name, (), kind, offset)],
        [(name, sizes * 4, kind, offset)],
        [(name, sizes, draw.choice((1, 2, 8, 24, 30, 39, 99, 2**31)), offset)],
        [(name, sizes, kind, draw.choice((1, 32, 2**40, 2**63, 2**64 - 32)))],
    ))  # fmt: skip
