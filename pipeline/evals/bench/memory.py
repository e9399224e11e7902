"""What an artefact holds in memory, and what the machine has left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.types import Provider, UserError

MB = 2**20

# psutil gives no peak on Linux, and `resource` gives the parent's where that was larger; both numbers are
# read in one place.
_CHILD = """
import sys
from pathlib import Path
import numpy as np
from pipeline.engines import opening
import pipeline.graphs.graphfile, pipeline.runtime.onnxruntime
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024
before = status("VmRSS")
path, batch, length, threads = Path(sys.argv[1]), *map(int, sys.argv[2:5])
opening.open_runner(path, threads, sys.argv[5]).forward(np.full((batch, length), 5))
print("MB", status("VmHWM"), before)
"""


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory of a process that runs an artefact, in MB.

    Attributes:
        peak: at most.
        before: before it loaded the artefact.
    """

    peak: float
    before: float


def resident(
    path: Path, batch: int, length: int, threads: int, provider: Provider = "cpu"
) -> Resident | None:
    """Resident memory of a fresh process that runs the artefact once.

    Memory on a GPU is not in it. The weights file is mapped, and its pages count as resident.

    Args:
        path: a graph or an engine.
        batch: sequences that it runs at once.
        length: tokens of each.
        threads: of ONNX Runtime.
        provider: of ONNX Runtime.

    Returns:
        None where /proc is missing.

    Raises:
        UserError: the artefact does not run.
    """
    if not Path("/proc/self/status").is_file():
        return None
    command = [sys.executable, "-c", _CHILD, str(path), str(batch), str(length), str(threads), provider]
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    numbers = [line.split()[1:] for line in child.stdout.splitlines() if line.startswith("MB ")]
    if child.returncode or not numbers:
        reason = (child.stderr.strip().splitlines() or [f"the process ended with {child.returncode}"])[-1]
        refusal = "pipeline.types.UserError: "  # it says all that there is to say
        if reason.startswith(refusal):
            raise UserError(reason.removeprefix(refusal))
        raise UserError(f"{path} does not run: {reason}")
    peak, before = map(float, numbers[0])
    return Resident(peak, before)


def _environment() -> dict[str, str]:
    """The child's environment: it imports this very package, also from a checkout that is not installed."""
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def free() -> float:
    """MB that new processes can have."""
    return float(psutil.virtual_memory().available) / MB


def require_room(memory: dict[Path, Resident | None]) -> None:
    """Refuses artefacts that do not fit into memory at once: a machine that swaps measures its disk.

    Args:
        memory: of each artefact.

    Raises:
        UserError: they do not fit.
    """
    needed, available = sum(one.peak - one.before for one in memory.values() if one), free()
    if needed > available:
        raise UserError(
            f"{len(memory)} artefacts at once need {needed:.0f} MB, and {available:.0f} MB are free; "
            "name fewer of them"
        )
