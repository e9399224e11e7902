from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pipeline.graphs import export, graphfile
from pipeline.models import checkpoint
from pipeline.runtime import device_memory, tensorrt_library
from pipeline.runtime.onnxruntime import PROVIDERS, OnnxRunner, open_session, refusal
from pipeline.types import UserError
from tests import tiny

IDS = np.arange(5, 12)[None]


@pytest.fixture
def path(workdir: Path) -> Path:
    return export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))), "fp16")


def test_a_graph_in_memory_reads_its_weights_from_the_folder(path: Path) -> None:
    data = ir.to_proto(graphfile.load(path)).SerializeToString()
    logits = []
    for model in (path, data):
        with OnnxRunner(path, open_session(model, path.parent, threads=1)) as runner:
            logits.append(runner.forward(IDS)[0])
    np.testing.assert_array_equal(*logits)


def test_inputs_and_outputs_have_their_types_and_shapes(path: Path) -> None:
    with OnnxRunner(path, open_session(path, path.parent)) as runner:
        assert runner.inputs["input_ids"].dtype == np.int64
        assert runner.inputs["past_key_values.1.key"].shape == ("batch", 2, "past", 32)
        assert runner.outputs["logits"].dtype == np.float16
        outputs = runner.infer(runner.feeds(IDS), ["present.0.key", "logits"])
        assert list(outputs) == ["present.0.key", "logits"]
        assert set(runner.infer(runner.feeds(IDS))) == set(runner.outputs)


def test_a_graph_that_onnx_runtime_refuses_is_one_line(path: Path) -> None:
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"ONNX Runtime refuses .*base.fp16.onnx: ") as caught:
        open_session(path, path.parent)
    assert "\n" not in str(caught.value)


def test_a_missing_provider_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match=r"no cuda provider; `pipeline doctor`"):
        open_session(path, path.parent, provider="cuda")


class FakeSession:
    """A session of onnxruntime that keeps the providers that it is told to, and drops the others silently.

    Args:
        model: of which `keeps` says what stays.
    """

    keeps: ClassVar[list[list[str]]] = []
    opened: ClassVar[list[Any]] = []

    def __init__(
        self, model: Any, options: Any, providers: Any, enable_fallback: int, disabled_optimizers: list[str]
    ) -> None:
        assert not enable_fallback  # onnxruntime would print to stdout, and take the CPU
        assert not disabled_optimizers
        self.opened.append((model, [name for name, _ in providers]))
        self.providers = self.keeps[len(self.opened) - 1]
        self.provider_options = dict(providers)

    def get_providers(self) -> list[str]:
        return self.providers


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """A machine with a GPU, as far as this module can see."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: "sm90")
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcufft.so.12"))
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    FakeSession.opened.clear()
    return FakeSession


BOTH, CPU = ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]


def test_cuda_that_does_not_load_is_refused_before_the_weights_are_read(
    path: Path, gpu: type[FakeSession], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime says nothing, and would run on the CPU."""
    gpu.keeps = [CPU]

    def load(name: str, *_: Any) -> None:
        if "cuda" in name:
            raise OSError("libcublasLt.so.13: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(
        UserError, match=r"does not load: libcublasLt\.so\.13: .*onnxruntime-gpu\[cuda,cudnn\]"
    ):
        open_session(path, path.parent, provider="cuda")
    (model, providers), *more = gpu.opened
    assert isinstance(model, bytes) and providers == BOTH[:1] and not more
    assert capsys.readouterr().out == ""  # what preload_dlls prints is no result


def test_cuda_that_leaves_this_very_graph_is_refused(
    path: Path, gpu: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.keeps = [BOTH, CPU]
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: None)
    with pytest.raises(UserError, match="left the cuda provider out: its library loads") as caught:
        open_session(path, path.parent, provider="cuda")
    assert [model for model, _ in gpu.opened[1:]] == [str(path)] and "\n" not in str(caught.value)


def test_cuda_that_loads_is_taken(path: Path, gpu: type[FakeSession]) -> None:
    gpu.keeps = [BOTH, BOTH]
    assert open_session(path, path.parent, provider="cuda").get_providers() == BOTH


def test_the_arena_on_cuda_has_the_bound(
    path: Path, gpu: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.keeps = [BOTH] * 4
    limits = []
    for gigabytes in ("", "1.5"):
        monkeypatch.setenv(device_memory.VARIABLE, gigabytes)
        session: Any = open_session(path, path.parent, provider="cuda")
        limits.append(session.provider_options[BOTH[0]].get("gpu_mem_limit"))
    assert limits == [None, "1500000000"]
    gpu.keeps.append(CPU)
    session = open_session(path, path.parent)
    assert session.provider_options == {CPU[0]: {}}


def test_cuda_without_a_gpu_is_refused(path: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: None)
    with pytest.raises(UserError, match="needs an NVIDIA GPU and its driver"):
        open_session(path, path.parent, provider="cuda")
    assert gpu.opened == [] and refusal("cpu") is None


@pytest.mark.skipif(tensorrt_library.gpu_target() is not None, reason="there is a GPU")
def test_the_real_cuda_provider_says_why_it_does_not_load(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of onnxruntime is faked: on a machine without a GPU its library or its session fails."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA")
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: "sm90")
    with pytest.raises(UserError, match=r"the cuda provider does not (load|start): ") as caught:
        open_session(path, path.parent, provider="cuda")
    assert "\n" not in str(caught.value) and capfd.readouterr().out == ""
