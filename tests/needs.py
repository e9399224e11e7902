"""What a test needs beyond this package. Without it the test skips and says why; in CI, Ray must be there."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest


def installed(name: str) -> bool:
    """Whether a package, or the bindings that it is made of, can be imported."""
    return any(importlib.util.find_spec(candidate) for candidate in (name, f"{name}_bindings"))


def rtx(test: Any) -> Any:
    """Marks a test that builds with TensorRT-RTX."""
    missing = pytest.mark.skipif(
        not installed("tensorrt_rtx"),
        reason="TensorRT-RTX is not installed: pip install 'skip-pipeline[rtx]'",
    )
    return pytest.mark.rtx(missing(test))


def cuda() -> list[pytest.MarkDecorator]:
    """Marks of a test, or of one of its cases, that runs graphs on ONNX Runtime's CUDA provider."""
    from pipeline.runtime.onnxruntime import refusal

    reason = refusal("cuda")
    return [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=str(reason))]


ray = pytest.mark.skipif(
    not installed("ray") and os.environ.get("CI") != "true",
    reason="Ray is not installed: pip install 'skip-pipeline[ray]'",
)
