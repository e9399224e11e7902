from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.runtime import tensorrt_library
from tests import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project root with a tiny model: base graphs in fp32 and fp16."""
    root = tmp_path_factory.mktemp("models")
    before = Path.cwd()
    os.chdir(root)
    try:
        base_model = checkpoint.resolve(str(tiny.checkpoint(Path("source") / "tiny", head_dim=16)))
        for precision in ("fp32", "fp16"):
            export.export_base(base_model, precision)
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(models: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current directory, on a machine that looks as if it had no GPU."""
    shutil.copytree(models / "graphs", workdir / "graphs")
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: None)
    return workdir
