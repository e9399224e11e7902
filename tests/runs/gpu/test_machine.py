"""What a machine can do of a proof, and why it cannot do the rest."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.engines import builder
from pipeline.models import devices
from pipeline.runtime import device_memory, onnxruntime, tensorrt_library
from pipeline.types import UserError
from runs.gpu import machine


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with an H200, whose PyTorch has no CUDA, and both TensorRTs."""
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: "sm90")
    monkeypatch.setattr(tensorrt_library, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(tensorrt_library, "library", lambda backend: None)
    monkeypatch.setattr(onnxruntime, "refusal", lambda provider: None)
    monkeypatch.setattr(devices, "refusal", lambda provider: "built without CUDA")

    class FakeBuilder:
        def __init__(self, backend: str) -> None:
            assert backend == "tensorrt-rtx"

        def targets(self) -> list[str]:
            return ["sm80", "sm89"]

    monkeypatch.setattr(builder, "Builder", FakeBuilder)
    return monkeypatch


def without(*missing: str) -> Any:
    """A stand-in for `tensorrt_library.library` that lacks some."""

    def library(backend: str) -> None:
        if backend in missing:
            raise UserError(f"{backend} is not installed")

    return library


def test_a_rehearsal_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "library", without("tensorrt-rtx"))
    here = machine.look("cpu")
    assert here.is_rehearsal and here.graphs_on == "cpu" and here.graphs_lack is here.torch_lack is None
    assert (here.gpu, here.known_as, here.target, here.device_bytes) == (None, "a100", "sm80", None)
    assert (here.backend, here.engines_lack) == (None, "tensorrt-rtx is not installed")
    assert here.host_bytes > 0 and "torch" in here.versions


def test_cuda_without_a_gpu_says_how_to_rehearse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: None)
    with pytest.raises(UserError, match="PROVIDER=cpu` rehearses"):
        machine.look("cuda")


def test_a_gpu(h200: pytest.MonkeyPatch) -> None:
    here = machine.look("cuda")
    assert (here.gpu, here.known_as, here.graphs_on) == ("NVIDIA H200", "h200", "cuda")
    assert (here.backend, here.engines_lack, here.target) == ("tensorrt", None, None)
    assert here.torch_lack == "built without CUDA" and here.device_bytes == 141 * 2**30  # the datasheet's


def test_memory_is_what_is_free_and_given(h200: pytest.MonkeyPatch) -> None:
    h200.setenv(device_memory.VARIABLE, "20")
    assert machine.look("cuda").device_bytes == 20e9
    h200.setenv(device_memory.VARIABLE, "1000")
    assert machine.look("cuda").device_bytes == 141 * 2**30
    h200.setattr(devices, "refusal", lambda provider: None)
    h200.setattr(devices, "free_bytes", lambda provider: 7)
    assert machine.look("cuda").device_bytes == 7


def test_a_gpu_that_nobody_predicts_for(h200: pytest.MonkeyPatch) -> None:
    h200.setattr(tensorrt_library, "gpu_name", lambda: "NVIDIA GeForce GT 710")
    here = machine.look("cuda")
    assert here.known_as is None is here.device_bytes


def test_rtx_stands_in_where_it_has_code_for_the_gpu(h200: pytest.MonkeyPatch) -> None:
    h200.setattr(tensorrt_library, "library", without("tensorrt"))
    here = machine.look("cuda")
    assert here.backend is None
    assert here.engines_lack == "tensorrt is not installed; TensorRT-RTX has no code for sm90"
    h200.setattr(tensorrt_library, "gpu_target", lambda: "sm89")
    assert machine.look("cuda").backend == "tensorrt-rtx"


def test_graphs_that_cuda_does_not_run_are_said(h200: pytest.MonkeyPatch) -> None:
    h200.setattr(onnxruntime, "refusal", lambda provider: "no cuBLAS")
    here = machine.look("cuda")
    assert (here.graphs_lack, here.graphs_on, here.backend) == ("no cuBLAS", "cpu", "tensorrt")
