"""The machine that a measurement ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pipeline.runtime import tensorrt_library
from pipeline.types import Provider, UserError


def device(artefact: Path, provider: Provider = "cpu") -> str:
    """The name of what runs the artefact: this machine's processor, or its GPU.

    Args:
        artefact: an engine, which runs on the GPU; or a graph.
        provider: of ONNX Runtime, that runs the graph.

    Raises:
        UserError: it runs on a GPU, and the driver sees none.
    """
    if artefact.suffix == ".plan" or provider == "cuda":
        name = tensorrt_library.gpu_name()
        if name is None:
            raise UserError(
                f"{artefact} runs on an NVIDIA GPU, and the driver sees none; see `pipeline doctor`"
            )
        return name
    return f"{_processor()} ({os.cpu_count()} cores seen)"


def _processor() -> str:
    """The processor's model, as the kernel names it, else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
