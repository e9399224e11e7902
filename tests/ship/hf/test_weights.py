"""Files of tensors, copied range by range."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ship.hf import weights
from pipeline.types import UserError
from tests.ship.hf import folders


def fails(error: BaseException) -> Callable[..., Any]:
    def function(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return function


def test_a_disk_that_is_too_small(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    usage = shutil.disk_usage(workdir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(UserError, match=r"the folder needs .* GB, and 1e-05 GB are free"):
        folders.shipped(graph)
    assert sorted(path.name for path in workdir.iterdir()) == ["graphs", "models"]


def test_a_file_system_without_ranges(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    monkeypatch.setattr(os, "copy_file_range", fails(OSError(errno.EXDEV, "other device")))
    monkeypatch.setattr(weights, "_CHUNK", 1000)
    assert folders.agrees(folders.shipped(graph).folder, graph)


def test_a_source_that_is_cut_short_meanwhile(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    monkeypatch.setattr(os, "copy_file_range", lambda *_args, **_kwargs: 0)
    with pytest.raises(UserError, match="was cut short while it was read"):
        folders.shipped(graph)
    assert not Path("out").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_bytes_that_were_changed_since(sharded: bool, workdir: Path) -> None:
    """Of a tensor that was copied, in a rewritten file or in a shard that stayed whole."""
    graph = folders.variant(
        folders.base(workdir, **({"max_shard_size": "60KB"} if sharded else {})), "block1"
    )
    folder = folders.shipped(graph).folder
    assert not folders.shipped(graph).is_new
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=r"\.weight was changed since it was written; remove the folder"):
            folders.shipped(graph)
        file.write_bytes(content)
    assert not folders.shipped(graph).is_new
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"is missing|holds no"):
        folders.shipped(graph)
