"""The name of what runs an artefact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.evals import machine
from pipeline.runtime import tensorrt_library
from pipeline.types import UserError


def test_a_graph_runs_on_the_processor() -> None:
    name = machine.device(Path("x.onnx"))
    assert name.endswith(f"({os.cpu_count()} cores seen)") and not name.startswith("(")


def test_an_engine_runs_on_the_gpu_that_the_driver_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, whose CUDA build need not be there."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(tensorrt_library, "gpu_name", lambda: "NVIDIA X")
    assert machine.device(Path("x.plan")) == "NVIDIA X"
    monkeypatch.setattr(tensorrt_library, "gpu_name", lambda: None)
    with pytest.raises(UserError, match=r"x\.plan runs on an NVIDIA GPU, and the driver sees none"):
        machine.device(Path("x.plan"))


def test_a_graph_on_cuda_runs_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "gpu_name", lambda: "NVIDIA X")
    assert machine.device(Path("x.onnx"), "cuda") == "NVIDIA X"


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from pipeline.evals import machine\n"
        "from pipeline.types import UserError\n"
        "print(machine.device(Path('x.onnx')))\n"
        "try: print(machine.device(Path('x.plan')))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.strip().splitlines()) == 2 and not done.stderr


def test_the_model_that_the_kernel_names_and_else_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(
        Path, "read_text", lambda _, encoding: "processor : 0\nmodel name\t: Some CPU @ 2 GHz\n"
    )
    assert machine._processor() == "Some CPU @ 2 GHz"
    monkeypatch.setattr(Path, "read_text", lambda _, encoding: "processor : 0\n")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert machine._processor() == "riscv64"
