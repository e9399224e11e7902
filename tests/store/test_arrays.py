"""NumPy's files: what is damaged, forged or too large is refused in one line."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import arrays
from pipeline.types import UserError

ARRAY = np.arange(6.0).reshape(2, 3)


def header(shape: str, kind: str = "<f8") -> bytes:
    """A .npy file that claims a shape, and holds 48 bytes."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + ARRAY.tobytes()


def test_arrays_come_back(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    np.savez_compressed(tmp_path / "a.npz", one=ARRAY, two=np.array(3))
    assert np.array_equal(arrays.read_array(tmp_path / "a.npy"), ARRAY)
    whole = arrays.read_arrays(tmp_path / "a.npz")
    assert list(whole) == ["one", "two"] and np.array_equal(whole["one"], ARRAY) and whole["two"] == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04N.",  # a pickle
        header("(2, 3)")[:40],
        header("(2, 4)"),
        header("(10**18,)"),
        header(f"({2**50},)"),
        header("(-1,)"),
        header("(2, 3)", "|O"),
        header("(" * 300),
        header("(2, 3)").replace(b"False", b"F\x00lse"),
    ],
)
def test_what_is_no_array_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npy holds no arrays that can be read"):
        arrays.read_array(file)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(UserError, match=r"a\.npz holds no arrays that can be read"):
        arrays.read_arrays(tmp_path / "a.npz")


def test_what_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", one=np.zeros(100_000))
    monkeypatch.setattr(arrays, "MOST", 800_000)
    with pytest.raises(UserError, match=r"holds 800,\d+ bytes of arrays; 800,000 is the most"):
        arrays.read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("read", [arrays.read_array, arrays.read_arrays])
def test_no_pipe_is_waited_for(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(UserError, match="not a regular file"):
        read(tmp_path / "a")
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "b")
