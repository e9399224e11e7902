"""Why PyTorch cannot compute on CUDA, in one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models import costs, devices, pretrained
from pipeline.models.config import read_config
from pipeline.models.reference import Reference
from pipeline.runtime import device_memory
from pipeline.runtime.device_memory import GB
from pipeline.types import BASE, UserError
from tests import tiny


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


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU of 40 GB, of which 30 are free, 20 may be taken, and PyTorch has 4; the shares that were set."""
    shares: list[float] = []
    monkeypatch.setenv(device_memory.VARIABLE, "20")
    monkeypatch.setattr(devices, "refusal", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30 * GB, 40 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 4 * GB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    return shares


def test_free_is_what_is_left_of_the_bound(bounded: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.free_bytes("cuda") == 16 * GB and devices.free_bytes("cpu") == 0
    monkeypatch.setenv(device_memory.VARIABLE, "39")
    assert devices.free_bytes("cuda") == 30 * GB
    monkeypatch.setenv(device_memory.VARIABLE, "3")
    assert devices.free_bytes("cuda") == 0


def test_the_bound_is_pytorchs_share_of_the_gpu(
    bounded: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.require("cpu")
    assert not bounded
    devices.require("cuda")
    monkeypatch.setenv(device_memory.VARIABLE, "80")
    devices.require("cuda")
    assert bounded == [0.5, 1.0]
    monkeypatch.setenv(device_memory.VARIABLE, "")
    devices.require("cuda")
    assert bounded == [0.5, 1.0]


def test_a_model_larger_than_the_bound_is_refused_before_it_is_loaded(
    bounded: list[float], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.checkpoint(workdir / "tiny")
    size = costs.weight_bytes(read_config(folder), BASE, "fp32")
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: pytest.fail("it was loaded"))
    monkeypatch.setenv(device_memory.VARIABLE, str(0.99 * size / GB))
    with pytest.raises(
        UserError, match=r"^the weights of .*tiny in fp32 need .* GB of the GPU's memory, and"
    ):
        Reference(folder, device="cuda")
    monkeypatch.setenv(device_memory.VARIABLE, str(1.01 * size / GB))
    devices.require_room("cuda", folder, BASE, "fp32")
    monkeypatch.setenv(device_memory.VARIABLE, str(0.51 * size / GB))
    devices.require_room("cuda", folder, BASE, "bf16")
    for provider, dtype in (("cpu", "fp32"), ("cuda", None)):  # not on the GPU; quantised
        devices.require_room(provider, folder, BASE, dtype)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="in fp32 need"):
        devices.require_room("cuda", folder, BASE, "fp32")


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
