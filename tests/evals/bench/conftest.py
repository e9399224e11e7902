from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet
from tests import tiny
from tests.models.test_texts import character_tokenizer


@pytest.fixture
def model(workdir: Path) -> Path:
    """graphs/m with a tokenizer, its base graph and three variants, none of them checked."""
    folder = character_tokenizer(tiny.checkpoint(workdir / "graphs" / "m", num_hidden_layers=3))
    base = export.export_base(checkpoint.open_checkpoint(folder))
    for name in ("attn0", "block1-2", "mlp2"):
        variants.cut(base, SkipSet.parse(name))
    return folder
