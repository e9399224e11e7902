"""Which files make a checkpoint, and that a copy is exact."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.models import checkpoint_files
from pipeline.types import UserError
from tests import tiny


def test_a_copy_has_the_checkpoints_files_with_their_dates_and_no_others(tmp_path: Path) -> None:
    source = tiny.tokenizer(tiny.checkpoint(tmp_path / "source", max_shard_size="60KB"))
    (source / "training.log").write_text("not of the checkpoint")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "copy").mkdir()
    checkpoint_files.copy(source, tmp_path / "copy")
    copied = {file.name for file in (tmp_path / "copy").iterdir()}
    assert copied == {file.name for file in checkpoint_files.files_of(source)}
    assert {"config.json", "tokenizer.json"} < copied and not {"training.log", "pytorch_model.bin"} & copied
    for name in copied:
        one, other = source / name, tmp_path / "copy" / name
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_mtime_ns == other.stat().st_mtime_ns
        assert not one.samefile(other)  # a hard link would change with its source


def test_a_copy_without_room_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    size = sum(file.stat().st_size for file in checkpoint_files.files_of(source))
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(checkpoint_files, "_FICLONE", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(
        UserError, match=r"^copying .*source to .*copy needs .* GB, and .* GB are free there; fre"
    ):
        checkpoint_files.copy(source, tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size))
    checkpoint_files.copy(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").is_file()


def test_a_copy_that_shares_its_extents_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    (tmp_path / "copy").mkdir()

    def reflink(file: Path, other: Path) -> bool:
        other.write_bytes(file.read_bytes())
        return True

    monkeypatch.setattr(checkpoint_files, "_reflink", reflink)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    checkpoint_files.copy(source, tmp_path / "copy")
    names = {file.name for file in (tmp_path / "copy").iterdir()}
    assert names == {file.name for file in checkpoint_files.files_of(source)}
