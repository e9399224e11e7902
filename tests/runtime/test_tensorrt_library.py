from __future__ import annotations

import ctypes
from typing import Any

import pytest

from pipeline.runtime import tensorrt_library
from pipeline.types import UserError


def test_a_backend_that_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", missing)
    with pytest.raises(
        UserError, match=r"tensorrt is not installed; run `pip install 'skip-pipeline\[tensorrt\]'`"
    ):
        tensorrt_library.library("tensorrt")
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    with pytest.raises(UserError, match="is installed but cannot be loaded: libnvinfer"):
        tensorrt_library.library("tensorrt-rtx")


def test_target_and_name_of_the_gpu_are_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, status: int) -> None:
            self.status = status

        def cuInit(self, flags: int) -> int:  # noqa: N802 - CUDA's name
            return self.status

        def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802 - CUDA's name
            return 0

        def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:  # noqa: N802
            number._obj.value = {75: 8, 76: 9}[attribute]
            return 0

        def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802 - CUDA's name
            name.value = b"NVIDIA L4"
            return 0

        def cuDeviceGetPCIBusId(self, bus: Any, size: int, device: Any) -> int:  # noqa: N802 - CUDA's name
            bus.value = b"0000:65:00.0"
            return 0

    def no_library(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(0))
    assert (tensorrt_library.gpu_target(), tensorrt_library.gpu_name()) == ("sm89", "NVIDIA L4")
    assert tensorrt_library.gpu_bus() == "0000:65:00.0"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(100))  # CUDA_ERROR_NO_DEVICE
    assert tensorrt_library.gpu_target() is None is tensorrt_library.gpu_name()
    assert tensorrt_library.gpu_bus() is None
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert tensorrt_library.gpu_target() is None is tensorrt_library.gpu_name()
    assert tensorrt_library.gpu_bus() is None
