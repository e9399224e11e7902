"""What a measurement times: a graph or an engine, or PyTorch with the same sublayers left out; and what each holds in memory.

Every contestant computes the same: the logits of the last token (optimum's graphs give those of all tokens, they have no
other form) and the cache that the next token needs. Feeds are made before the clock starts.

Legend: B batch, S tokens of a sequence, N sequences, V vocabulary.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engines import opening
from pipeline.runtime.runner import Array
from pipeline.types import Precision, SkipSet, UserError, Variant

Start = Callable[[Array], Callable[[int], Array]]
"""Tokens [N, B, S] → what runs sequence k and returns its logits [B, K, V]. For decode the first S − 1 tokens are cached."""

SETTLE = 0.01
"""Seconds that PyTorch's OpenMP threads spin on after a call (measured: 7.5 ms), longer than the next sample may wait."""


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        name: unique in the run.
        path: the artefact whose variant it is.
        kind: 'artefact' itself, or 'torch' or 'optimum' on the same variant.
        how: how it is run, in words.
    """

    name: str
    path: Path
    variant: Variant
    kind: str
    start: Start
    how: str


def of_artefact(path: Path, threads: int, decode: bool) -> Start:
    """A graph or an engine, opened once.

    Every decoded sequence stands on the first one's cache: what the cache holds changes no work, and one prefill is enough.
    """
    runner = opening.open_runner(path, threads=threads)

    def start(tokens: Array) -> Callable[[int], Array]:
        if decode:
            _, cache = runner.forward(tokens[0][:, :-1])
            feeds = [runner.feeds(rows[:, -1:], cache, np.ones_like(rows)) for rows in tokens]
        else:
            feeds = [runner.feeds(rows) for rows in tokens]
        return lambda k: runner.infer(feeds[k])["logits"]

    return start


def of_torch(
    folder: Path, skip: SkipSet, precision: Precision, threads: int, decode: bool, healed: Path | None = None
) -> Start:
    """PyTorch eager as Hugging Face runs it: use_cache=True, the LM head at the last token only."""
    import torch

    from pipeline.models.reference import Reference

    torch.set_num_threads(threads)
    model = Reference(folder, skip, precision, healed).model

    def start(tokens: Array) -> Callable[[int], Array]:
        rows = [torch.from_numpy(np.ascontiguousarray(part)) for part in tokens]
        return _torch_decode(model, rows) if decode else _torch_prefill(model, rows)

    return start


def _torch_prefill(model: Any, rows: list[Any]) -> Callable[[int], Array]:
    import torch

    def run(k: int) -> Array:
        with torch.inference_mode():
            logits: Array = model(input_ids=rows[k], use_cache=True, logits_to_keep=1).logits.numpy()
        return logits

    return run


def _torch_decode(model: Any, rows: list[Any]) -> Callable[[int], Array]:
    """One token on the first sequence's cache, which is cropped again by replacing its tensors (no copy).

    Positions and a whole mask are given: transformers would ask layer 0's cache for the length, and that attention may be
    left out.
    """
    import torch
    from transformers import DynamicCache

    batch, total = rows[0].shape
    position = torch.tensor([total - 1])
    mask = torch.zeros(batch, 1, 1, total, dtype=model.dtype)
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=rows[0][:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    kept = [
        (layer, layer.keys, layer.values)
        for layer in cache.layers
        if getattr(layer, "keys", None) is not None
    ]

    def run(k: int) -> Array:
        for layer, keys, values in kept:
            layer.keys, layer.values = keys, values
        with torch.inference_mode():
            logits: Array = model(
                input_ids=rows[k][:, -1:],
                attention_mask=mask,
                position_ids=position.expand(batch, 1),
                cache_position=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits.numpy()
        return logits

    return run


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
path, batch, length, threads = Path(sys.argv[1]), *map(int, sys.argv[2:])
opening.open_runner(path, threads=threads).forward(np.full((batch, length), 5))
print("MB", status("VmHWM"), before)
"""


def peak_memory(path: Path, batch: int, length: int, threads: int) -> tuple[float, float] | None:
    """(peak resident MB of a fresh process that loads this artefact alone and runs one sequence, MB of it before the load).

    Memory on a GPU is not in it. The weights file is mapped, and its pages count as resident. None where /proc is missing.

    Raises:
        UserError: the artefact does not run.
    """
    if not Path("/proc/self/status").is_file():
        return None
    command = [sys.executable, "-c", _CHILD, str(path), str(batch), str(length), str(threads)]
    # from a checkout that is not installed the child would not find this package
    here = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": here}
    )
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("MB ")]
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        own = "pipeline.types.UserError: "  # a refusal of ours says it all
        raise UserError(
            reason.removeprefix(own) if reason.startswith(own) else f"{path} does not run: {reason}"
        )
    return float(found[0][0]), float(found[0][1])


def free_memory() -> float | None:
    """MB that new processes can have; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    return next(
        int(line.split()[1]) / 1024
        for line in meminfo.read_text().splitlines()
        if line.startswith("MemAvailable")
    )
