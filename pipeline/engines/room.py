"""Memory and disk that a build needs, said before it begins."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.types import UserError

log = logging.getLogger(__name__)
GB = 1e9
_MEMORY_FLOOR = 0.6e9
"""Of Python, TensorRT-RTX and its compiler, beside the weights; measured (docs/notes.md)."""
_DISK_FLOOR = 0.1e9
"""Of a plan's kernels and its log."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a build needs, in bytes.

    Attributes:
        memory: resident, and not given back while it builds; pages of mapped files are.
        disk: in the engine's folder.
    """

    memory: float
    disk: float


def needs(weight_bytes: int, merged_bytes: int = 0, stacked_bytes: int = 0) -> Needs:
    """What a build with TensorRT-RTX needs: it holds one copy of the weights when it writes the plan.

    Args:
        weight_bytes: of the graph.
        merged_bytes: of the weights that TensorRT-RTX makes one of, in a copy.
        stacked_bytes: of the weights that are written anew for it.
    """
    return Needs(_MEMORY_FLOOR + weight_bytes + merged_bytes, _DISK_FLOOR + weight_bytes + stacked_bytes)


def require(plan: Path, wanted: Needs) -> None:
    """Says what a build will need.

    Args:
        plan: that will be written.
        wanted: what it needs.

    Raises:
        UserError: the machine lacks it.
    """
    memory = psutil.virtual_memory().available + psutil.swap_memory().free
    folder = next(place for place in plan.parents if place.is_dir())
    disk = shutil.disk_usage(folder).free
    sizes = [f"{size / GB:.1f} GB" for size in (wanted.memory, memory, wanted.disk, disk)]
    log.info("building it needs %s of memory of %s that are free, and %s of disk of %s", *sizes)
    if wanted.memory > memory:
        raise UserError(
            f"building {plan} needs {sizes[0]} of memory, and {sizes[1]} are free: end other programs, "
            "add swap, leave more out of the model, or build it on a machine with more and copy the plan here"
        )
    if wanted.disk > disk:
        raise UserError(
            f"building {plan} needs {sizes[2]} of disk, and {sizes[3]} are free there: remove what is no "
            "longer needed (`pipeline list` shows it)"
        )
