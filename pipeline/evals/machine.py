"""The machine that a measurement ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def device(artefact: Path) -> str:
    """The name of what runs the artefact: this machine's processor, or for an engine its GPU."""
    if artefact.suffix == ".plan":
        import torch

        return torch.cuda.get_device_name()
    return f"{_processor()} ({os.cpu_count()} cores seen)"


def _processor() -> str:
    """The processor's model, as the kernel names it, else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
