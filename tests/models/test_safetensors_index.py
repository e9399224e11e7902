"""Weights files whose headers are wrong, and byte ranges against the safetensors library's own tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.models import checkpoint, safetensors_index, weight_files
from pipeline.types import UserError
from tests import tiny


def test_byte_ranges_hold_the_tensors_of_the_library(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, max_shard_size="60KB")
    files = weight_files.weight_files(folder)
    tensors = safetensors_index.read_index(files)
    expected = {name: array for file in files for name, array in load_file(file).items()}
    assert len(files) > 1 and set(tensors) == set(expected)
    for name, tensor in tensors.items():
        raw = (folder / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(tensor.shape), expected[name])


def test_a_tensor_in_two_shards_is_taken_where_they_agree(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file, seed in zip(files, (0, 1), strict=True):
        own = np.random.default_rng(seed).random(3, np.float32)
        save_file({"x": np.ones(2, np.float32), file.stem: own}, file)
    tensors = safetensors_index.read_index(files)
    assert set(tensors) == {"a", "b", "x"} and tensors["x"].file == "a.safetensors"
    for other in (np.array([1, 2], np.float32), np.ones(2, np.float16), np.ones((1, 2), np.float32)):
        save_file({"x": other}, files[1])
        with pytest.raises(
            UserError, match=r"b\.safetensors and a\.safetensors both hold the tensor 'x', and differ"
        ):
            safetensors_index.read_index(files)


def test_an_index_names_what_its_shards_hold(tmp_path: Path) -> None:
    """transformers passes over what the index does not name, and leaves empty what no shard holds."""
    file = tmp_path / "a.safetensors"
    table = "layers.0.self_attn.rotary_emb.inv_freq"
    save_file({"x": np.ones(2, np.float32), "y": np.ones(2, np.float32), table: np.ones(2, np.float32)}, file)
    assert set(safetensors_index.read_index([file], frozenset({"x", "y"}))) == {"x", "y", table}
    with pytest.raises(UserError, match="the index names z, which no shard holds"):
        safetensors_index.read_index([file], frozenset({"x", "y", "z", f"model.{table}"}))
    with pytest.raises(UserError, match="its shards hold y, which the index does not name"):
        safetensors_index.read_index([file], frozenset({"x"}))


def test_equal_bytes_beyond_a_chunk(tmp_path: Path) -> None:
    values = np.zeros(600_000, np.float32)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({"x": values}, files[0])
    values[-1] = 1
    save_file({"x": values}, files[1])
    (one,), (other,) = (safetensors_index.read_index([file]).values() for file in files)
    assert safetensors_index.same_bytes(files[0], one, files[0], one)
    assert not safetensors_index.same_bytes(files[0], one, files[1], other)


def spoil(folder: Path, how: str) -> None:
    """Damages a checkpoint in one way."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = "model.layers.0.mlp.up_proj.weight"
    if how == "truncated":
        file.write_bytes(raw[:-100])
        return
    if how == "truncated header":
        file.write_bytes(raw[:100])
        return
    if how == "text":
        file.write_text("hello")
        return
    if how == "huge header":
        file.write_bytes((1 << 60).to_bytes(8, "little") + raw[8:])
        return
    if how == "no JSON":
        file.write_bytes(raw[:8] + b"x" * length + raw[8 + length :])
        return
    begin, end = header[name]["data_offsets"]
    header[name] |= {
        "overlap": {"data_offsets": [begin - 4, end - 4]},
        "beyond": {"data_offsets": [begin + 10**9, end + 10**9]},
        "negative": {"data_offsets": [-4, end - begin - 4]},
        "shape": {"shape": [9, 9]},
        "type": {"dtype": "PICKLE"},
        "garbled": {"data_offsets": "x"},
    }[how]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


SPOILED = {
    "truncated": "truncated: its header promises",
    "truncated header": "truncated or no safetensors",
    "text": "truncated or no safetensors",
    "huge header": "truncated or no safetensors",
    "no JSON": "malformed",
    "overlap": "lies about its offsets",
    "beyond": "lies about its offsets|truncated",
    "negative": "the header lies",
    "shape": "the header lies",
    "type": "has the type PICKLE",
    "garbled": "malformed",
}


@pytest.mark.parametrize("how", SPOILED)
def test_weights_that_lie_are_refused_and_nothing_is_left(how: str, workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    spoil(source, how)
    with pytest.raises(UserError, match=SPOILED[how]) as caught:
        checkpoint.resolve(str(source))
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert not Path("graphs/tiny").exists()


def test_the_library_opens_only_what_is_known_to_be_true(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"x": np.arange(4.0)}, file)
    with safetensors_index.opened(file, "np") as tensors:
        assert list(tensors.keys()) == ["x"]
    assert safetensors_index.load(file)["x"].tolist() == [0, 1, 2, 3]
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    unread = raw[8 : 8 + length].replace(b'"F64"', b'"F8_E8M0"').replace(b"[4]", b"[32]")
    for content, words in (
        (raw[:-1], "truncated"),
        (len(unread).to_bytes(8, "little") + unread + raw[8 + length :], r"cannot be read"),
        (header_in("utf-16", raw, length), "header is malformed"),
        (b"", "truncated or no safetensors file"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=words):
            safetensors_index.load(file, "np")


def header_in(encoding: str, raw: bytes, length: int) -> bytes:
    """The same file with its header in another encoding, which json would guess."""
    header = raw[8 : 8 + length].decode().encode(encoding)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (Path.mkdir, "cannot be read: Is a directory"),
    ],
)
def test_what_is_no_file_is_one_line(put: Any, words: str, tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=words):
        safetensors_index.read_index([tmp_path / "a.safetensors"])
