"""A header is read by what the file holds, not by what it claims."""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf as library
import numpy as np
import pytest

from pipeline.models.gguf import header, parts
from pipeline.models.gguf.convert import convert
from pipeline.types import UserError
from tests import tiny_gguf
from tests.tiny_gguf import Tiny


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def start(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def array(kind: int, count: int) -> bytes:
    return text("k") + struct.pack("<IIQ", 9, kind, count)


def entry(rank: int, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text("t") + struct.pack(f"<I{len(sizes)}QIQ", rank, *sizes, kind, offset)


HOSTILE = {
    "empty": b"",
    "another format": b"PK\x03\x04" + bytes(100),
    "version 1": start(version=1) + bytes(100),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(100),
    "tensors": start(tensors=2**31) + bytes(1000),
    "all the tensors": start(tensors=2**64 - 1) + bytes(1000),
    "keys": start(keys=2**31) + bytes(1000),
    "a key's length": start(keys=1) + struct.pack("<Q", 2**63) + bytes(1000),
    "a string's length": start(keys=1) + text("k") + struct.pack("<IQ", 8, 2**63) + bytes(1000),
    "an array's length": start(keys=1) + array(4, 2**63) + bytes(1000),
    "an array of strings": start(keys=1) + array(8, 2**62) + bytes(1000),
    "arrays in arrays": start(keys=1) + array(9, 1) + struct.pack("<IQ", 9, 1) * 500,
    "an unknown type": start(keys=1) + text("k") + struct.pack("<I", 99) + bytes(1000),
    "a key twice": start(keys=2) + (text("k") + struct.pack("<II", 4, 7)) * 2,
    "no UTF-8": start(keys=1) + struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 7),
    "100 dimensions": start(tensors=1) + entry(100, (2,) * 100) + bytes(1000),
    "no dimension": start(tensors=1) + entry(0, ()) + bytes(1000),
    "2³¹ dimensions": start(tensors=1) + entry(2**31, (2,)) + bytes(1000),
    "endless sizes": start(tensors=1) + entry(4, (2**63,) * 4) + bytes(1000),
    "size of nought": start(tensors=1) + entry(2, (0, 4)) + bytes(1000),
    "an unknown tensor type": start(tensors=1) + entry(1, (4,), 250) + bytes(1000),
    "half a block": start(tensors=1) + entry(1, (33,), library.GGMLQuantizationType.Q8_0) + bytes(1000),
    "far beyond": start(tensors=1) + entry(1, (4,), 0, 2**62) + bytes(1000),
    "between": start(tensors=1) + entry(1, (4,), 0, 7) + bytes(1000),
    "a tensor twice": start(tensors=2) + entry(1, (4,)) * 2 + bytes(1000),
    "alignment": start(keys=1) + text("general.alignment") + struct.pack("<II", 4, 0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_is_one_line_at_once(name: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(HOSTILE[name])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match=r"m\.gguf is not a readable GGUF file") as caught:
        header.read(file)
    assert "\n" not in str(caught.value) and time.monotonic() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_what_the_library_reads_is_read_alike(tmp_path: Path) -> None:
    how = Tiny(
        keys={
            "general.tags": ["a", "é"],
            "x.numbers": [1, -2],
            "x.yes": True,
            "x.half": 0.5,
            "x.flags": [True],
        },
        kinds={"ffn": library.GGMLQuantizationType.Q8_0, "attn": library.GGMLQuantizationType.F16},
    )
    file = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", how)
    read, theirs = header.read(file), library.GGUFReader(file)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert read.fields == fields
    assert [tensor.name for tensor in read.tensors] == [tensor.name for tensor in theirs.tensors]
    for tensor, expected in zip(read.tensors, theirs.tensors, strict=True):
        assert (tensor.kind, tensor.size) == (expected.tensor_type, expected.n_bytes)
        assert tensor.shape == tuple(int(size) for size in reversed(expected.shape))
        np.testing.assert_array_equal(tensor.stored().ravel(), expected.data.view(np.uint8).ravel())


@pytest.mark.slow
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf").read_bytes()
    file = tmp_path / "cut.gguf"
    last = header.read(tmp_path / "m.gguf").tensors[-1]
    end = last.start + last.size  # padding follows
    for length in [*range(0, 200, 7), *range(200, end, 9973), end - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError) as caught:
            parts.read(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 10**9),
        ("llama.block_count", 3),
        ("llama.block_count", 0),
        ("llama.attention.head_count", 2**31),
        ("llama.embedding_length", 2**31),
        ("llama.feed_forward_length", 2**31),
        ("llama.attention.key_length", 2**31),
    ],
)
def test_sizes_are_held_against_the_tensors_first(key: str, value: int, tmp_path: Path) -> None:
    file = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", Tiny(keys={key: value}))
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        convert(file, tmp_path / "c")
    assert "\n" not in str(caught.value) and time.monotonic() - began < 2
    assert not (tmp_path / "c").exists()


def test_a_damaged_byte_of_the_header_never_escapes_as_a_traceback(tmp_path: Path) -> None:
    whole = bytearray(tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf").read_bytes())
    file, refused = tmp_path / "damaged.gguf", 0
    change: Callable[[int], int] = lambda byte: byte ^ 0xFF  # noqa: E731
    for place in range(0, 1000, 3):
        damaged = whole.copy()
        damaged[place] = change(damaged[place])
        file.write_bytes(damaged)
        try:
            convert(file, tmp_path / "c")
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 100
