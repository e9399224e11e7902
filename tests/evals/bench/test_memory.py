"""Memory of a fresh process, and of the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.evals.bench import memory
from pipeline.types import UserError
from tests.timing import graph

FOUR = memory.Passes(1, (4,), 1)


@pytest.mark.parametrize("decode", [False, True])
def test_a_fresh_process_has_more_with_the_artefact_than_before(model: Path, decode: bool) -> None:
    resident = memory.resident(graph(model, "base"), memory.Passes(2, (3, 4), 1, decode))
    assert resident is not None and resident.peak > resident.before > 10
    assert (resident.device, resident.attention, resident.on_host) == (None, {}, None)  # all of a GPU


def test_on_a_gpu_its_used_memory_tells(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 MiB before the artefact is opened, 1800 after it ran; nothing but the GPU is faked."""
    (tmp_path / "nvidia-smi").write_text(
        f"""#!/bin/sh
test -e {tmp_path}/asked && echo "1, 1, 1, 1, 1, 1, 1, 1800, 0x0" || echo "1, 1, 1, 1, 1, 1, 1, 500, 0x0"
touch {tmp_path}/asked
"""
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    where = 'provider == "cuda" or path.suffix == ".plan"'
    assert where in memory._CHILD
    monkeypatch.setattr(memory, "_CHILD", memory._CHILD.replace(where, "True"))
    resident = memory.resident(graph(model, "base"), FOUR)
    assert resident is not None and resident.device == 1300.0


VERBOSE = """LENGTH 50
2026-11-29 02:00:00.1 [V:onnxruntime:Default, attention.cc:1482 ComputeInternal] \
Attention: using unified unfused path (is_gqa=0, head_size=128, softcap=0)
\x1b[0;93m2026-11-29 [V:onnxruntime:, attention.cc] Attention: using unified unfused path (is_gqa=0)
LENGTH 100
[V] ONNX Attention: using Memory Efficient Attention (batch=1, q_seq=100, total_seq=100, past=no, mask=yes)
[V] ONNX Attention: using cuDNN SDPA (batch=1)
[V] ONNX Attention: using Memory Efficient Attention (batch=1, q_seq=100, total_seq=100, past=no, mask=yes)
[I:onnxruntime:Default, bfc_arena.cc:29 BFCArena] Creating BFCArena for Cuda
LENGTH 200
"""


def test_kernels_are_read_from_the_log_of_each_length() -> None:
    early = "[V] Attention: using unified unfused path (is_gqa=0)\n"  # before a length: it is not measured
    assert memory.attention_kernels(early + VERBOSE) == {
        50: "unified unfused path",
        100: "Memory Efficient Attention ×2, cuDNN SDPA ×1",
    }
    assert memory.attention_kernels("") == {}


def test_what_the_process_tells_of_a_graph_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"peak": 9.0, "before": 4.0, "device": 5.0, "on_host": {"Shape": 3}}
    child = f"import sys; print({VERBOSE!r}, file=sys.stderr); print('FOUND', {json.dumps(json.dumps(told))})"
    monkeypatch.setattr(memory, "_CHILD", child)
    resident = memory.resident(Path("x.onnx"), FOUR, "cuda")
    assert resident == memory.Resident(9.0, 4.0, 5.0, memory.attention_kernels(VERBOSE), on_host={"Shape": 3})


def test_what_does_not_run_is_said_in_the_words_of_its_refusal(model: Path) -> None:
    path = graph(model, "base")
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"^/.*graphs/m/base\.fp32\.onnx has no sidecar"):
        memory.resident(path, FOUR)


def test_another_failure_is_the_last_line_of_the_process(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CHILD", "raise OSError('no luck')")
    with pytest.raises(UserError, match=r"x\.onnx does not run: OSError: no luck"):
        memory.resident(Path("x.onnx"), FOUR)


def test_what_pytorch_allocates_for_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, and the most beside them of several passes; what lay there before does not count."""
    allocated, most = 7 * memory.MB, 0

    def give(nbytes: int) -> None:
        nonlocal allocated, most
        allocated += nbytes
        most = max(most, allocated)

    def run(k: int) -> None:
        give(30 * memory.MB)
        give(-30 * memory.MB)

    def forget() -> None:
        nonlocal most
        most = allocated

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: most)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    one = memory.TorchMemory()
    with one.loading():
        give(150 * memory.MB)
        give(-50 * memory.MB)  # as where a model is cast
    one.measure(run)
    one.measure(lambda _: give(10 * memory.MB))
    assert one.mb == 130.0


def test_free_memory_is_some_of_the_machines() -> None:
    assert 0 < memory.free() < psutil.virtual_memory().total / memory.MB


def test_room_counts_what_each_artefact_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 500.0)
    of = {Path("a"): memory.Resident(400.0, 150.0), Path("b"): memory.Resident(400.0, 150.0), Path("c"): None}
    memory.require_room(of)
    with pytest.raises(UserError, match="4 artefacts at once need 501 MB, and 500 MB are free"):
        memory.require_room({**of, Path("d"): memory.Resident(2.0, 1.0)})
