"""Why PyTorch cannot compute on CUDA, in one line each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.models import devices
from pipeline.types import UserError


def test_the_cpu_is_always_there() -> None:
    assert devices.refusal("cpu") is None
    devices.require("cpu")


def test_a_pytorch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        UserError, match=r"^PyTorch .* is built without CUDA; take --provider cpu, or "
    ) as caught:
        devices.require("cuda")
    assert "\n" not in str(caught.value)


def test_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7, 20))
    assert (devices.free_bytes("cuda"), devices.free_bytes("cpu")) == (7, 0)


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"sees no NVIDIA GPU that CUDA 13\.0 can use; `nvidia-smi`"):
        devices.require("cuda")


def test_a_gpu_that_does_not_answer_and_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def zeros(count: int, device: str) -> Any:
        assert (count, device) == (1, "cuda")
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nCUDA kernel errors might be …")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(UserError, match=r"cannot use the GPU: CUDA error: all .* are busy$"):
        devices.require("cuda")
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    devices.require("cuda")
