"""Jobs as processes: their exit, their words, their end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.sweep.jobs import GridCell, Job
from pipeline.sweep.local import LocalPool, Outcome, environment
from tests import tiny


def job(id: str, *command: str, **more: Any) -> Job:
    return Job(id, "export", "m", GridCell(), ("pipeline", *command), **more)


def outcomes(pool: LocalPool) -> dict[str, Outcome]:
    """Waits for all that runs."""
    ended: list[Outcome] = []
    while pool.running:
        ended += pool.ended(1.0)
    return {outcome.id: outcome for outcome in ended}


def test_the_exit_and_the_words_of_a_job_are_kept(workdir: Path) -> None:
    pool = LocalPool(2, Path("logs"))
    pool.start(job("good", "list", "--json", stdout=Path("out/good é.json")))
    pool.start(job("bad", "show", "nothing.onnx"))
    assert not pool.takes(job("third", "list"))
    ended = outcomes(pool)
    assert ended["good"].error is None and json.loads(Path("out/good é.json").read_text()) is not None
    assert ended["bad"].error == "nothing.onnx does not exist; `pipeline list` shows what does"
    assert "nothing.onnx" in Path("logs/bad.log").read_text() and ended["bad"].seconds > 0


def test_a_measurement_of_time_runs_alone_and_a_closed_pool_leaves_nothing(workdir: Path) -> None:
    pool, clock, other = (
        LocalPool(2, Path("logs")),
        job("clock", "list", exclusive=True),
        job("other", "list"),
    )
    assert pool.takes(clock)
    pool.start(job("long", "list"))
    assert not pool.takes(clock) and pool.takes(other)
    pid = pool.running["long"][1].process.pid
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    pool.start(clock)
    assert not pool.takes(other)
    assert outcomes(pool)["clock"].error is None


def test_a_killed_job_says_so(workdir: Path) -> None:
    pool = LocalPool(1, Path("logs"))
    pool.start(job("long", "list"))
    pool.running["long"][1].process.kill()
    assert outcomes(pool)["long"].error == "killed by signal 9 (Killed)"


def test_a_job_dies_with_the_sweep_however_that_dies(workdir: Path) -> None:
    """The starter is gone before the job has begun, or right after."""
    script = (
        "import os, pathlib, signal\n"
        "from pipeline.sweep.local import JobProcess\n"
        "job = JobProcess('job', ('pipeline', 'list'), pathlib.Path('logs'), None)\n"
        "print(job.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    starter = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=tiny.environment(), check=False
    )
    status = Path(f"/proc/{int(starter.stdout)}/stat")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.05)
    assert time.monotonic() < until and Path("logs/job.out").read_text() == ""


def test_a_job_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results on CUDA would have other names than those that the sweep waits for."""
    monkeypatch.setenv("PIPELINE_PROVIDER", "cuda")
    assert environment()["PIPELINE_PROVIDER"] == "cpu"
