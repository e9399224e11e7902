"""The header of one GGUF file: its keys and where its tensors lie. Nothing is trusted, little is read.

`gguf.GGUFReader` loops over whatever counts a file claims and makes a NumPy view of every word of a
vocabulary. Here each count and length is held against the bytes that are left before anything is made of it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import numpy.typing as npt

from pipeline.types import UserError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""Type of a value → its code for `struct`; all little-endian."""
_MOST_KEYS, _MOST_TENSORS, _MOST_WORDS, _MOST_DIMS = 4096, 2**17, 2**21, 4
"""More than any model has: llama.cpp knows some 200 keys; the largest vocabularies have 2¹⁸ words."""
_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        name: in llama.cpp's words.
        file: that holds it.
        kind: how its numbers are stored.
        shape: as Hugging Face has it, rows first.
        start, size: bytes in the file.
    """

    name: str
    file: Path
    kind: library.GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int

    def stored(self) -> npt.NDArray[Any]:
        """What is stored, [rows…, bytes of a row] uint8; read from the disk when it is used."""
        data = np.memmap(self.file, np.uint8, "r", self.start, (self.size,))
        return data.reshape(*self.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says.

    Attributes:
        file: it.
        fields: key → value.
        tensors: in the order of the file.
    """

    file: Path
    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


def read(file: Path) -> GgufHeader:
    """The header of a GGUF file; of a split one, what this part says.

    Raises:
        UserError: it cannot be read, is cut, or claims what it does not hold.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise UserError(f"{file} is not a readable GGUF file (it is no regular file)")
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(file, content).header()
    except UserError:
        raise
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UserError(f"{file} is not a readable GGUF file ({error})") from None


class _Reader:
    """Reads forward through a mapped file."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self.file, self.content = file, content
        self.size, self.place = len(content), 0

    def refusal(self, reason: str) -> UserError:
        return UserError(f"{self.file} is not a readable GGUF file ({reason})")

    def header(self) -> GgufHeader:
        if self.take(4) != _MAGIC:
            raise self.refusal("it does not begin with GGUF")
        version = self.number("I")
        if version not in _VERSIONS:
            raise self.refusal(f"version {version}; versions 2 and 3, little-endian, are read")
        tensors = self.count("Q", _MOST_TENSORS, 24, "tensors")
        keys = self.count("Q", _MOST_KEYS, 12, "keys")
        fields: dict[str, Any] = {}
        for _ in range(keys):
            name = self.text(_LONGEST_NAME, "a key")
            if name in fields:
                raise self.refusal(f"it has the key {name} twice")
            fields[name] = self.value(self.number("I"), name)
        entries = [self.entry() for _ in range(tensors)]
        return GgufHeader(self.file, fields, self.placed(entries, fields))

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.size - self.place:
            raise self.refusal(f"it is cut: {self.size:,} bytes")
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, code: str, most: int, least_bytes: int, what: str) -> int:
        """How many things follow, of which each takes so many bytes at least."""
        count = int(self.number(code))
        if count > most or count * least_bytes > self.size - self.place:
            raise self.refusal(f"it claims {count:,} {what}")
        return count

    def text(self, most: int, what: str) -> str:
        raw = self.take(self.count("Q", most, 1, f"bytes of {what}"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.refusal(f"{what} is not UTF-8: {raw[:40]!r}") from None

    def value(self, kind: int, name: str) -> Any:
        """A value of a key."""
        if kind == _STRING:
            return self.text(self.size, name)
        if kind in _SCALARS:
            number = self.number(_SCALARS[kind])
            return bool(number) if kind == _BOOL else number
        if kind != _ARRAY:
            raise self.refusal(f"{name} has the unknown type {kind}")
        inner = self.number("I")
        if inner == _STRING:
            words = self.count("Q", _MOST_WORDS, 8, f"values of {name}")
            return [self.text(self.size, name) for _ in range(words)]
        if inner not in _SCALARS:  # llama.cpp has no arrays of arrays either
            raise self.refusal(f"{name} is an array of the type {inner}")
        width = struct.calcsize(f"<{_SCALARS[inner]}")
        values = self.count("Q", _MOST_WORDS, width, f"values of {name}")
        numbers = np.frombuffer(self.take(values * width), f"<{_SCALARS[inner]}").tolist()
        return [bool(number) for number in numbers] if inner == _BOOL else numbers

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, sizes with the row's length first, type, offset) of a tensor."""
        name = self.text(_LONGEST_NAME, "a tensor's name")
        rank = int(self.number("I"))
        if not 1 <= rank <= _MOST_DIMS:
            raise self.refusal(f"the tensor {name} has {rank:,} dimensions")
        sizes = struct.unpack(f"<{rank}Q", self.take(8 * rank))
        return name, sizes, int(self.number("I")), int(self.number("Q"))

    def placed(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], fields: dict[str, Any]
    ) -> tuple[GgufTensor, ...]:
        """The tensors, each of which lies within the file."""
        align = fields.get("general.alignment", library.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(align, int) or align < 8 or align & (align - 1):
            raise self.refusal(f"general.alignment is {align!r:.40}")
        data = -(-self.place // align) * align
        tensors: dict[str, GgufTensor] = {}
        for name, sizes, raw_kind, offset in entries:
            try:
                kind = library.GGMLQuantizationType(raw_kind)
            except ValueError:
                raise self.refusal(f"the tensor {name} has the unknown type {raw_kind}") from None
            block, width = library.GGML_QUANT_SIZES[kind]
            if name in tensors:
                raise self.refusal(f"it has the tensor {name} twice")
            if 0 in sizes or sizes[0] % block or offset % align:
                raise self.refusal(f"the tensor {name} has odd sizes: {list(sizes)} at {offset}")
            size = math.prod(sizes) // block * width
            if data + offset + size > self.size:
                raise self.refusal(f"it is cut: the tensor {name} ends beyond its {self.size:,} bytes")
            shape = tuple(reversed(sizes))
            tensors[name] = GgufTensor(name, self.file, kind, shape, data + offset, size)
        return tuple(tensors.values())
