"""Tiny checkpoints of a project, to calibrate and to heal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.graphs import export
from pipeline.models import checkpoint
from tests import learning, tiny


@pytest.fixture
def folder(workdir: Path) -> Path:
    """graphs/tiny, with a tokenizer."""
    tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=learning.LAYERS)
    tiny.tokenizer(workdir / "models" / "tiny")
    return checkpoint.resolve("models/tiny").folder


@pytest.fixture
def base(folder: Path) -> Path:
    """Its base graph."""
    return export.export_base(checkpoint.open_checkpoint(folder))
