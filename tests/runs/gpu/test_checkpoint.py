"""Checkpoints of random weights: whole, with a tokenizer, and made once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.models import texts, tokenizer
from pipeline.types import UserError
from runs.gpu import checkpoint, shapes

SMALL = dataclasses.replace(shapes.find("tiny"), width=64, inner=96, layers=9, vocabulary=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    checkpoint.write(SMALL, folder)
    return folder


def test_the_weights_are_those_of_the_config(folder: Path) -> None:
    index = json.loads((folder / checkpoint.INDEX).read_text())
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded = load_file(file)
        assert {index["weight_map"].pop(name) for name in loaded} == {file.name}
        tensors |= loaded
    assert not index["weight_map"] and len(list(folder.glob("*.safetensors"))) == 2
    assert sum(one.size for one in tensors.values()) == SMALL.parameters
    assert index["metadata"]["total_size"] == 2 * SMALL.parameters
    assert {one.dtype for one in tensors.values()} == {np.dtype(np.float16)}
    down = tensors["model.layers.8.mlp.down_proj.weight"].astype(np.float64)
    assert down.shape == (64, 96) and abs(down.std() * 96**0.5 - 1.28) < 0.1


@pytest.mark.usefixtures("workdir")  # tokens are kept in the project, which is the current folder
def test_its_text_has_many_words_and_none_beyond_the_embedding(folder: Path) -> None:
    words = tokenizer.load(folder)
    assert words.prefix == [1]
    tokens, source = texts.sequences(folder, 50, 4)
    assert source == texts.OWN_NAME and len(set(tokens.ravel())) > 20 and tokens.max() < 300
    assert words.backend.get_vocab_size() == 300


def test_a_whole_checkpoint_is_not_made_again(folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    checkpoint.write(SMALL, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_one_of_another_shape_or_without_its_index_is(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / checkpoint.INDEX).unlink()
    checkpoint.write(SMALL, copy)
    assert (copy / checkpoint.INDEX).is_file()
    checkpoint.write(dataclasses.replace(SMALL, layers=2), copy)
    assert json.loads((copy / "config.json").read_text())["num_hidden_layers"] == 2


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    with pytest.raises(UserError, match=r"1\.0 GB free, and the weights need 13\.5"):
        checkpoint.write(shapes.find("7b"), tmp_path)
    assert not list(tmp_path.iterdir())
