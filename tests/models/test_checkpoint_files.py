"""Which files make a checkpoint, and that a copy is exact."""

from __future__ import annotations

from pathlib import Path

from pipeline.models import checkpoint_files
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
