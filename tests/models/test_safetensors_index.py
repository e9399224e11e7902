"""Weights files whose headers are wrong, and byte ranges against the safetensors library's own tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.models import checkpoint, safetensors_index
from pipeline.types import UserError
from tests import tiny


def test_byte_ranges_hold_the_tensors_of_the_library(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, max_shard_size="60KB")
    files = safetensors_index.weight_files(folder)
    tensors = safetensors_index.read_index(files)
    expected = {name: array for file in files for name, array in load_file(file).items()}
    assert len(files) > 1 and set(tensors) == set(expected)
    for name, tensor in tensors.items():
        raw = (folder / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(tensor.shape), expected[name])


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        save_file({"x": np.zeros(2, np.float32)}, file)
    with pytest.raises(UserError, match=r"b\.safetensors and a\.safetensors both hold the tensor 'x'"):
        safetensors_index.read_index(files)


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


def test_pickled_weights_are_refused_with_the_conversion(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights.*save_pretrained"):
        checkpoint.resolve(str(source))


def test_an_index_that_leaves_the_folder(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    (source / safetensors_index.INDEX).write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="outside its folder"):
        checkpoint.resolve(str(source))


def test_an_index_of_another_form_or_of_a_missing_file(tmp_path: Path) -> None:
    for text, message in [
        ("[]", "not a valid record"),
        (json.dumps({"weight_map": {"a": 1}}), "weight_map"),
        (json.dumps({"weight_map": {"a": "gone.safetensors"}}), r"names gone\.safetensors, which is missing"),
        (json.dumps({"weight_map": {}}), r"holds no model\.safetensors"),
    ]:
        (tmp_path / safetensors_index.INDEX).write_text(text)
        with pytest.raises(UserError, match=message):
            safetensors_index.weight_files(tmp_path)
