"""The name of what runs an artefact."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pipeline.evals import machine


def test_a_graph_runs_on_the_processor() -> None:
    name = machine.device(Path("x.onnx"))
    assert name.endswith(f"({os.cpu_count()} cores seen)") and not name.startswith("(")


def test_an_engine_runs_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    assert machine.device(Path("x.plan")) == "NVIDIA X"


def test_the_model_that_the_kernel_names_and_else_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: "processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert machine._processor() == "Some CPU @ 2 GHz"
    monkeypatch.setattr(Path, "read_text", lambda _: "processor : 0\n")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert machine._processor() == "riscv64"
