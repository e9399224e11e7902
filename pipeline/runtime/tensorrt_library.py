"""The Python modules of TensorRT and TensorRT-RTX, found without importing what is not there; the GPU; and their log."""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

from pipeline.types import UserError

BACKENDS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}

_ADD = {
    "tensorrt-rtx": "pip install 'skip-pipeline[rtx]'",
    "tensorrt": "pip install 'skip-pipeline[tensorrt]'",
}

Shape = tuple[int, ...]

Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Input name → its shape at minimum, optimum and maximum."""

Range = tuple[int, int, int]
"""Minimum, optimum and maximum of a dimension."""


def library(backend: str) -> Any:
    """The Python module of a backend, under the name that Polygraphy expects.

    Raises:
        UserError: unknown backend, not installed, or installed without something that it needs.
    """
    if backend not in BACKENDS:
        raise UserError(f"no backend {backend!r}; choose from {', '.join(BACKENDS)}")
    name = BACKENDS[backend]
    for candidate in (
        name,
        f"{name}_bindings",
    ):  # the RTX wheels bring the bindings without the front package
        try:
            module = importlib.import_module(candidate)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            raise UserError(f"{backend} is installed but cannot be loaded: {one_line(error)}") from None
        sys.modules.setdefault(name, module)
        return module
    raise UserError(f"{backend} is not installed; run `{_ADD[backend]}`")


def gpu_target() -> str | None:
    """The compute capability of the GPU that CUDA calls device 0, as 'sm89'; None without a GPU or its driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    for found, attribute in (
        (major, 75),
        (minor, 76),
    ):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, …_MINOR
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(found), attribute, device)
    return None if failed else f"sm{major.value}{minor.value}"


def one_line(words: object) -> str:
    """TensorRT's words in one line of bearable length; the log has them whole."""
    text = " ".join(str(words).split())
    return text if len(text) <= 300 else f"{text[:299]}…"


_loggers: dict[str, Any] = {}


def logger_of(trt: Any) -> Any:
    """One logger a library: TensorRT keeps the first that it is given for the life of the process."""
    if trt.__name__ not in _loggers:

        class Collector(trt.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.lines: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity != trt.ILogger.Severity.VERBOSE:
                    self.lines.append(f"{str(severity).rsplit('.', 1)[-1]} {message}")

        _loggers[trt.__name__] = Collector()
    return _loggers[trt.__name__]
