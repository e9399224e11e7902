"""ship and serve as commands: what they refuse, and what they hand on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.types import UserError
from tests import tiny
from tests.commands import run


def test_ship_writes_a_repository(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = model / "mlp1.fp32.onnx"
    tiny.passed(graph)
    shown = json.loads(run(capsys, "ship", graph, "--to", "triton", "repo", "--rows", "3", "--json"))
    (shipped,) = shown["models"].values()
    assert shipped["versions"]["1"]["variant"] == "mlp1" and shipped["versions"]["1"]["settings"]["rows"] == 3
    assert (Path("repo") / "SHIP.json").is_file()
    docker = run(capsys, "serve", "repo", "--docker")
    assert "docker run" in docker and str(Path("repo").resolve()) in docker


def test_what_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--to takes triton and a folder, not 'vllm'"):
        run(capsys, "ship", model / "base.fp32.onnx", "--to", "vllm", "repo")
    with pytest.raises(UserError, match="has passed no check"):
        run(capsys, "ship", model / "base.fp32.onnx", "--to", "triton", "repo")
    assert not Path("repo").exists()
