from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evals.bench import memory
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet
from tests import tiny


@pytest.fixture
def model(workdir: Path) -> Path:
    """graphs/m of the current project: a tokenizer, the base, mlp1 and block1, none of them checked."""
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "m", vocab_size=tiny.WORDS))
    base = export.export_base(checkpoint.resolve("models/m"))
    for name in ("mlp1", "block1"):
        variants.cut(base, SkipSet.parse(name))
    return base.parent


@pytest.fixture
def unweighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benches go without the memory of each artefact, which takes a process and seconds."""
    monkeypatch.setattr(memory, "resident", lambda *_: None)
