from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import store
from pipeline.engines import build, opening
from pipeline.runtime import tensorrt_library
from pipeline.types import UserError
from tests import needs, tiny
from tests.tiny_engines import HERE, graph


@needs.rtx
def test_a_plan_without_a_gpu_is_refused_in_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build.build(graph())
    with pytest.raises(UserError, match="runs on an NVIDIA GPU only, and none is seen here") as caught:
        opening.open_runner(plan)
    assert "\n" not in str(caught.value)
    if HERE is None:
        for arguments in (["check", str(plan)], ["bench", str(plan), "--unchecked"]):
            line = [sys.executable, "-m", "pipeline.cli", *arguments]
            done = subprocess.run(line, env=tiny.environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
            (error,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
            assert "runs on an NVIDIA GPU only, and none is seen here" in error
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: "sm89")
    store.write_sidecar(plan, store.engine_sidecar(plan).replaced(backend_version="1.0").plain())
    with pytest.raises(
        UserError, match=r"was built by tensorrt-rtx 1\.0, and .* is installed; build it again"
    ):
        opening.open_runner(plan)
