"""A project with a tiny model, its graphs, their checks, and a data folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import store
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet
from tests import scoring, tiny


@pytest.fixture
def project(workdir: Path) -> Path:
    """The data folder of a project whose model has the graphs base, attn2 and block1-2."""
    folder = workdir / "models" / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=4096)
    tiny.tokenizer(folder)
    base = export.export_base(checkpoint.resolve(str(folder)))
    for name in ("attn2", "block1-2"):
        variants.cut(base, SkipSet.parse(name))
    for graph in store.graphs_of("tiny"):
        tiny.passed(graph)
    return scoring.write_rows(workdir / "data")


@pytest.fixture
def graphs(project: Path) -> list[Path]:
    """base, attn2, block1-2."""
    return store.graphs_of("tiny")
