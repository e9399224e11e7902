"""The Python modules of TensorRT and TensorRT-RTX, their logger, and the GPU that they run on."""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

from pipeline.types import UserError, first_line

BACKENDS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}

_EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""

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
    for candidate in (name, f"{name}_bindings"):  # the RTX wheels lack the front package
        try:
            module = importlib.import_module(candidate)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            raise UserError(f"{backend} is installed but cannot be loaded: {one_line(error)}") from None
        sys.modules.setdefault(name, module)
        return module
    raise UserError(f"{backend} is not installed; run `pip install 'skip-pipeline[{_EXTRAS[backend]}]'`")


def gpu_target() -> str | None:
    """The compute capability of CUDA's device 0, as 'sm89'; None without a GPU or its driver."""
    driver, device = _driver(), ctypes.c_int()
    if driver is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = driver.cuDeviceGet(ctypes.byref(device), 0)
    for number, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    return None if failed else f"sm{major.value}{minor.value}"


def gpu_name() -> str | None:
    """The name of CUDA's device 0, as its driver gives it; None without a GPU or its driver."""
    driver, device, name = _driver(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver is None:
        return None
    failed = driver.cuDeviceGet(ctypes.byref(device), 0)
    failed = failed or driver.cuDeviceGetName(name, len(name), device)
    return None if failed else name.value.decode(errors="replace")


def gpu_bus() -> str | None:
    """Where CUDA's device 0 sits, as '0000:65:00.0'; None without a GPU or its driver."""
    driver, device, bus = _driver(), ctypes.c_int(), ctypes.create_string_buffer(64)
    if driver is None:
        return None
    failed = driver.cuDeviceGet(ctypes.byref(device), 0)
    failed = failed or driver.cuDeviceGetPCIBusId(bus, len(bus), device)
    return None if failed else bus.value.decode(errors="replace")


def _driver() -> Any:
    """CUDA's driver, ready; None where it is missing or sees no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


def one_line(message: object) -> str:
    """All lines of a message of TensorRT's as one, cut to length; the log has it whole."""
    return first_line(" ".join(str(message).split()))


def started(trt: Any, kind: str) -> Any:
    """TensorRT's builder or runtime, 'Builder' or 'Runtime'.

    Raises:
        UserError: TensorRT makes none, as where the driver is older than it asks for; pybind11's TypeError.
    """
    logger = logger_of(trt)
    try:
        return getattr(trt, kind)(logger)
    except TypeError as error:
        reason = one_line(logger.lines[-1] if logger.lines else error)
        raise UserError(
            f"{trt.__name__} {trt.__version__} does not start on this machine, often because "
            f"the GPU's driver is too old for it: {reason}"
        ) from None


_loggers: dict[str, Any] = {}


def logger_of(trt: Any) -> Any:
    """The one logger of a library: TensorRT keeps the first that it gets until the process ends."""
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
