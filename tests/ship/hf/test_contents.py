"""What a folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.types import UserError
from tests import tiny
from tests.ship.hf import folders


def test_a_changed_tokenizer_is_another_folder(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir), "block0")
    folders.shipped(graph)
    (graph.parent / "generation_config.json").write_text('{"temperature": 0.5}')
    with pytest.raises(UserError, match="other weights or settings"):
        folders.shipped(graph)


def test_the_small_files_come_along(workdir: Path) -> None:
    source = tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    graph = folders.variant(export.export_base(checkpoint.resolve("models/tiny")), "block0")
    folder = folders.shipped(graph).folder
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (graph.parent / name).read_bytes()
    assert not (folder / "source.json").exists() and not list(folder.glob("*.onnx"))
