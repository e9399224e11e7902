"""build-engine as a command: what it hands to its stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import engines, extras
from pipeline.engines import build
from pipeline.engines.settings import BuildSettings
from pipeline.graphs import variants
from pipeline.runtime import tensorrt_library
from pipeline.types import UserError
from tests.commands import run


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, BuildSettings]]:
    """The builds that are wanted; none is run."""
    calls: list[tuple[Path, BuildSettings]] = []

    def stage(path: Path, settings: BuildSettings) -> Path:
        calls.append((path, settings))
        return path

    monkeypatch.setattr(build, "build", stage)
    monkeypatch.setattr(tensorrt_library, "library", lambda _: None)
    monkeypatch.setattr(extras, "missing", lambda _: [])
    return calls


def test_the_fp16_twin_is_built(model: Path, builds: list, capsys: pytest.CaptureFixture[str]) -> None:
    words = run(capsys, "build-engine", model / "mlp1.fp32.onnx", "--target", "sm80", "--target", "sm89")
    ((path, settings),) = builds
    assert path == model / "mlp1.fp16.onnx" and words == f"{path}\n"
    assert settings.backend == "tensorrt-rtx" and settings.targets == ("sm80", "sm89")
    assert settings.batch == (1, 1, 8) and settings.past == (0, 100, 2048) and not settings.force


def test_the_precision_may_be_kept(model: Path, builds: list, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = json.loads(
        run(
            capsys, "build-engine", model / "mlp1.fp32.onnx", "--keep-precision", "--batch", "1,2,4", "--json"
        )
    )
    assert builds[0][0] == model / "mlp1.fp32.onnx" and shown["variant"] == "mlp1"
    assert builds[0][1].batch == (1, 2, 4) and builds[0][1].keep_precision


def test_together_builds_one_merged_graph(
    model: Path, builds: list, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = [model / "base.fp32.onnx", model / "mlp1.fp32.onnx"]
    run(capsys, "build-engine", *graphs, "--together")
    ((path, _),) = builds
    assert path.name.startswith("merged-")


def test_an_unknown_backend(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no backend 'coreml'; choose from"):
        run(capsys, "build-engine", model / "mlp1.fp32.onnx", "--backend", "coreml")


def test_each_backend_has_its_extra() -> None:
    assert set(engines.BACKEND_EXTRAS) == set(tensorrt_library.BACKENDS)
    assert set(engines.BACKEND_EXTRAS.values()) <= set(extras.EXTRAS)


def test_the_fp16_twin_keeps_its_static_cache(
    model: Path, builds: list, capsys: pytest.CaptureFixture[str]
) -> None:
    static = variants.cut_static(model / "mlp1.fp32.onnx", 128)
    run(capsys, "build-engine", static)
    assert builds[0][0] == model / "mlp1.fp16.static128.onnx" and builds[0][0].is_file()
