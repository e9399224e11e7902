"""Memory of a fresh process, and of the machine."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from pipeline.evals.bench import memory
from pipeline.types import UserError
from tests.timing import graph


def test_a_fresh_process_has_more_with_the_artefact_than_before(model: Path) -> None:
    resident = memory.resident(graph(model, "base"), 1, 4, 1)
    assert resident is not None and resident.peak > resident.before > 10


def test_what_does_not_run_is_said_in_the_words_of_its_refusal(model: Path) -> None:
    path = graph(model, "base")
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"^/.*graphs/m/base\.fp32\.onnx has no sidecar"):
        memory.resident(path, 1, 4, 1)


def test_another_failure_is_the_last_line_of_the_process(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CHILD", "raise OSError('no luck')")
    with pytest.raises(UserError, match=r"x\.onnx does not run: OSError: no luck"):
        memory.resident(Path("x.onnx"), 1, 4, 1)


def test_free_memory_is_some_of_the_machines() -> None:
    assert 0 < memory.free() < psutil.virtual_memory().total / memory.MB


def test_room_counts_what_each_artefact_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 500.0)
    of = {Path("a"): memory.Resident(400.0, 150.0), Path("b"): memory.Resident(400.0, 150.0), Path("c"): None}
    memory.require_room(of)
    with pytest.raises(UserError, match="4 artefacts at once need 501 MB, and 500 MB are free"):
        memory.require_room({**of, Path("d"): memory.Resident(2.0, 1.0)})
