"""check, bench and score as commands: exit codes, tables, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.evals.bench import memory
from pipeline.types import UserError
from tests.commands import run
from tests.faults import spoil, strict_mask


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for an artefact's memory."""
    monkeypatch.setattr(memory, "resident", lambda *_: memory.Resident(300.0, 100.0))


def test_check_prints_every_artefact_and_fails_for_one(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, mlp = model / "base.fp32.onnx", model / "mlp1.fp32.onnx"
    spoil(mlp, strict_mask)
    passed, failed = json.loads(run(capsys, "check", base, mlp, "--json", code=1))
    assert (passed["path"], passed["passed"], passed["already_checked"]) == (str(base), True, False)
    assert failed["passed"] is False and failed["localized"].startswith("layer 0 attn")
    assert run(capsys, "check", base).startswith(f"passed (already checked)  {base}")


@pytest.mark.slow
def test_bench_checks_first_and_puts_scores_beside(
    model: Path, no_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = model / "mlp1.fp32.onnx"
    quick = (
        "--sequences",
        "2",
        "--lengths",
        "4,6",
        "--threads",
        "1",
        "--tasks",
        "smoke-loss",
        "--limit",
        "2",
    )
    words = run(capsys, "bench", graph, *quick)
    assert store.check_passed(graph) and store.check_passed(model / "base.fp32.onnx")
    assert max(map(len, words.splitlines())) <= 100 and "…" not in words
    latencies, scores = words.split("scores in %")
    for heading in ("variant", "tokens", "p50 ms", "saved %", "ceiling %", "of it", "peak MB", "B/token"):
        assert heading in latencies
    assert "total s" not in words and "p99" not in words
    row = next(line for line in scores.splitlines() if "mlp1.fp32" in line)
    assert "smoke-loss" in scores and "at 6" in scores and row.count("(") == 1

    report = json.loads(run(capsys, "bench", graph, *quick, "--json"))
    assert {"total", "p90", "p99", "weight_mb", "clean", "disturbed"} <= set(report["rows"][0])
    assert [score["variant"] for score in report["scores"]] == ["base", "mlp1"]


def test_score_of_what_is_checked_together(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = [model / "base.fp32.onnx", model / "mlp1.fp32.onnx"]
    with pytest.raises(UserError, match="has passed no check; run `pipeline check graphs/m/base"):
        run(capsys, "score", *graphs, "--tasks", "smoke-loss", "--together")
    together = ("score", *graphs, "--tasks", "smoke-loss", "--limit", "2", "--together", "--unchecked")
    scores = json.loads(run(capsys, *together, "--json"))
    assert [score["variant"] for score in scores] == ["base", "mlp1"] and not scores[0]["checked"]
    assert scores[0]["value"] != scores[1]["value"]
    assert "smoke-loss" in run(capsys, *together)
