"""What an artefact holds in memory, and what the machine has left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from pipeline.types import Provider, UserError

MB = 2**20

# psutil gives no peak on Linux, and `resource` gives the parent's where that was larger; both numbers are
# read in one place.
_CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from pipeline.engines import opening
from pipeline.evals.bench import gpu_watch
from pipeline.runtime import ort_placement
import pipeline.graphs.graphfile, pipeline.runtime.onnxruntime
def status(key):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024
path, provider, work = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
on_gpu = provider == "cuda" or path.suffix == ".plan"
def used():
    state = gpu_watch.state() if on_gpu else None
    return state.used_mb if state else None
before, used_before = status("VmRSS"), used()
runner = opening.open_runner(path, work["threads"], provider)
for length in work["lengths"]:
    tokens = np.full((work["batch"], length), 5)
    cache = runner.forward(tokens)[1] if work["decode"] else None
    print("LENGTH", length, file=sys.stderr, flush=True)
    with ort_placement.telling_attention(provider):
        runner.forward(tokens[:, -1:] if work["decode"] else tokens, cache)
used_after = used()
print("FOUND", json.dumps({
    "peak": status("VmHWM"),
    "before": before,
    "device": None if used_before is None or used_after is None else used_after - used_before,
    "on_host": getattr(runner, "on_host", None),
}))
"""


@dataclass(frozen=True, slots=True)
class Passes:
    """What an artefact is run on.

    Attributes:
        batch: sequences at once.
        lengths: tokens of a prefill; or, of `decode`, of the cache before one further token.
        threads: of ONNX Runtime.
    """

    batch: int
    lengths: tuple[int, ...]
    threads: int
    decode: bool = False


@dataclass(frozen=True, slots=True)
class Resident:
    """What a process holds that runs an artefact, and how it ran.

    Attributes:
        peak: MB of resident memory at most.
        before: the same before it loaded the artefact.
        device: MiB by which the GPU's used memory grew; None where it ran on the CPU, or nothing tells.
        attention: length → the kernels that its attention ran on; none where the runtime does not tell.
        on_host: operator → nodes of a graph on CUDA that ONNX Runtime put on the CPU; None of all others.
    """

    peak: float
    before: float
    device: float | None = None
    attention: dict[int, str] = field(default_factory=dict)
    on_host: dict[str, int] | None = None


def resident(path: Path, passes: Passes, provider: Provider = "cpu") -> Resident | None:
    """Memory of a fresh process that runs the artefact once at each length.

    The weights file is mapped, and its pages count as resident.

    Args:
        path: a graph or an engine.
        passes: what it runs.
        provider: of ONNX Runtime.

    Returns:
        None where /proc is missing.

    Raises:
        UserError: the artefact does not run.
    """
    if not Path("/proc/self/status").is_file():
        return None
    command = [sys.executable, "-c", _CHILD, str(path), provider, json.dumps(asdict(passes))]
    child = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, env=_environment()
    )
    answers = [line.removeprefix("FOUND ") for line in child.stdout.splitlines() if line.startswith("FOUND ")]
    if child.returncode or not answers:
        reason = (child.stderr.strip().splitlines() or [f"the process ended with {child.returncode}"])[-1]
        refusal = "pipeline.types.UserError: "  # it says all that there is to say
        if reason.startswith(refusal):
            raise UserError(reason.removeprefix(refusal))
        raise UserError(f"{path} does not run: {reason}")
    return Resident(**json.loads(answers[0]), attention=attention_kernels(child.stderr))


_KERNEL = re.compile(r"Attention: using (.+?) \(")
"""ONNX Runtime 1.31.1, core/providers/cuda/llm/attention.cc, which logs its choice in every run."""


def attention_kernels(log: str) -> dict[int, str]:
    """Length → the kernels of ONNX Runtime's CUDA attention, the most frequent first; none that it tells not.

    Args:
        log: of the process, with a line `LENGTH n` before the pass of each length.
    """
    counts = dict[int, Counter[str]]()
    for line in log.splitlines():
        if line.startswith("LENGTH "):
            current = counts.setdefault(int(line.split()[1]), Counter())
        elif counts and (kernel := _KERNEL.search(line)):
            current[kernel[1]] += 1
    return {length: _counted(found) for length, found in counts.items() if found}


def _counted(kernels: Counter[str]) -> str:
    """'unified unfused path', or with how often where there are several."""
    if len(kernels) == 1:
        return next(iter(kernels))
    return ", ".join(f"{name} ×{count}" for name, count in kernels.most_common())


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


class TorchMemory:
    """What PyTorch's allocator gives to one model on a GPU: its weights, and the most beside them in a pass.

    Attributes:
        weights, beside: bytes.
    """

    def __init__(self) -> None:
        self.weights = self.beside = 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What is allocated meanwhile, and kept, are the model's weights."""
        import torch

        start = torch.cuda.memory_allocated()
        yield
        self.weights = torch.cuda.memory_allocated() - start

    def measure(self, run: Callable[[int], object]) -> None:
        """Runs a pass, and keeps the most that it allocated."""
        import torch

        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(0)
        self.beside = max(self.beside, torch.cuda.max_memory_allocated() - start)

    @property
    def mb(self) -> float:
        """Both, in MiB."""
        return (self.weights + self.beside) / MB
