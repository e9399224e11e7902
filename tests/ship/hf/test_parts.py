"""Which tensor goes into which file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.models import safetensors_index
from pipeline.ship.hf import parts, weights
from pipeline.ship.hf.parts import Computed, WrittenTensor
from pipeline.ship.pruned import StoredTensor


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, WrittenTensor]:
    """Four tensors of 400 bytes, two a file."""
    tensors: dict[str, WrittenTensor] = {}
    for i in range(2):
        file = tmp_path / f"{i}.safetensors"
        save_file({f"{i}{k}": np.full((10, 10), i, np.float32) for k in "ab"}, file)
        for name, one in safetensors_index.read_index([file]).items():
            tensors[name] = WrittenTensor(name, StoredTensor(file, one), file)
    return tensors


def files(stored: dict[str, WrittenTensor]) -> list[Path]:
    return sorted({part.home for part in stored.values() if part.home})


def new(name: str, rows: int) -> WrittenTensor:
    return WrittenTensor(name, Computed("F32", (rows, 10), lambda: np.ones((rows, 10), np.float32)), None)


def test_whole_files_stay(stored: dict[str, WrittenTensor]) -> None:
    shards = parts.shards(stored.values(), files(stored))
    assert [shard.whole for shard in shards] == files(stored)
    fewer = parts.shards([one for name, one in stored.items() if name != "0a"], files(stored))
    assert [shard.whole for shard in fewer] == [None, files(stored)[1]]


def test_a_tensor_of_another_name_is_rewritten(stored: dict[str, WrittenTensor]) -> None:
    renamed = [WrittenTensor(f"x{name}", one.tensor, one.home) for name, one in stored.items()]
    assert [shard.whole for shard in parts.shards(renamed, files(stored))] == [None, None]


def test_what_is_new_has_files_of_its_own_as_small_as_the_sources(
    stored: dict[str, WrittenTensor],
) -> None:
    limit = max(file.stat().st_size for file in files(stored))
    fresh = [new(f"n{i}", 10) for i in range(5)]
    shards = parts.shards([*stored.values(), *fresh], files(stored))
    assert [len(shard.parts) for shard in shards] == [2, 2, 2, 2, 1]
    assert all(shard.nbytes <= limit for shard in shards)
    assert list(parts.file_names(shards))[-1] == "model-00005-of-00005.safetensors"
    one = parts.shards([*stored.values()][:1] + fresh[:1], files(stored)[:1])
    assert list(parts.file_names(one)) == ["model.safetensors"] and len(one[0].parts) == 2


def test_wide_numbers_come_first(stored: dict[str, WrittenTensor], tmp_path: Path) -> None:
    """So that each tensor begins at a multiple of its numbers' size, whatever comes before it."""
    odd = WrittenTensor("odd", Computed("BF16", (3,), lambda: np.zeros(3, np.uint16)), None)
    (tmp_path / "out").mkdir()
    weights.write(parts.shards([odd, *stored.values()][:2], files(stored)[:1]), tmp_path / "out")
    tensors = safetensors_index.read_index([tmp_path / "out" / "model.safetensors"])
    assert tensors["0a"].offset % 4 == 0 and tensors["0a"].offset < tensors["odd"].offset
