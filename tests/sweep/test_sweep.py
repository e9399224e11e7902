"""How a sweep runs jobs that fail, wait, share and measure time, and what it writes down of them."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import store
from pipeline.cli import main
from pipeline.sweep import ledger, recipe, sweep
from pipeline.sweep.jobs import GridCell, Job
from pipeline.sweep.ledger import Ledger, Rates
from pipeline.sweep.local import LocalPool, Outcome
from pipeline.sweep.progress import ProgressView
from pipeline.types import UserError
from tests import tiny
from tests.grids import GRID, known, made


class FakePool:
    """Does jobs at once: each is done afterwards unless it is named in `fails`; remembers what ran."""

    def __init__(self, fails: tuple[str, ...] = (), lies: tuple[str, ...] = (), dies: str = "") -> None:
        self.fails, self.lies, self.dies = fails, lies, dies
        self.ran: list[str] = []
        self.finished: set[str] = set()
        self.now: list[str] = []

    def takes(self, job: Job) -> bool:
        return not self.now

    def start(self, job: Job) -> None:
        if job.id == self.dies:
            raise KeyboardInterrupt
        self.ran.append(job.id)
        self.now.append(job.id)

    def ended(self, wait: float) -> list[Outcome]:
        (id,), self.now = self.now, []
        if id in self.fails:
            return [Outcome(id, "the disk is full", 1.5)]
        if id not in self.lies:
            self.finished.add(id)
        return [Outcome(id, None, 2.5)]

    def close(self) -> None: ...

    def is_done(self, job: Job, _: recipe.Recipe) -> bool:
        return job.inline or job.id in self.finished


def go(path: Path, pool: Any, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """Runs the sweep on a pool of one's own → the ledger's entries by id."""
    book = Ledger.open(path)
    with ProgressView(path.stem, book, Console(file=io.StringIO())) as view:
        sweep.Sweep(recipe.read(path), book, pool, view, limit, pool.is_done).run()
    return entries(path)


def entries(path: Path) -> dict[str, dict[str, Any]]:
    return {job["id"]: job for job in store.read_json(store.Project().sweep(path.stem) / "ledger.json")["jobs"]}


def test_what_fails_is_written_down_and_the_rest_goes_on(workdir: Path) -> None:
    path = known()
    pool = FakePool(fails=("tiny.attn2.fp32.check",), lies=("tiny.mlp2.fp32.score.smoke",))
    held = go(path, pool)
    assert (
        held["tiny.attn2.fp32.check"]["state"] == "failed"
        and held["tiny.attn2.fp32.check"]["error"] == "the disk is full"
    )
    for name in ("score.smoke", "bench"):
        entry = held[f"tiny.attn2.fp32.{name}"]
        assert entry["state"] == "waiting" and entry["error"] == "waiting: needs tiny.attn2.fp32.check"
    assert held["tiny.mlp2.fp32.score.smoke"]["error"].startswith("exited with 0, and ")
    rest = [
        job
        for id, job in held.items()
        if not id.startswith("tiny.attn2.fp32") and id != "tiny.mlp2.fp32.score.smoke"
    ]
    assert {job["state"] for job in rest} == {"done"} and len(rest) > 20
    one = held["tiny.mlp1.fp32.export"]
    assert one["command"] == ["pipeline", "export", "tiny", "--skip", "mlp1"] and one["seconds"] == 2.5
    assert (one["kind"], one["frac"], one["select"], one["variant"], one["precision"]) == (
        "mlp",
        0.3,
        "last-but-final",
        "mlp1",
        "fp32",
    )
    assert set(one) == {
        "id", "stage", "model", "kind", "frac", "select", "variant", "precision", "task", "state", "error", "seconds", "command",
        "outputs",
    }  # fmt: skip
    book = store.read_json(store.Project().sweep("grid") / "ledger.json")
    assert (
        book["what"] == "sweep"
        and book["recipe"] == "grid.toml"
        and book["recipe_sha256"] == store.sha256(path)
    )
    first_bench = next(k for k, id in enumerate(pool.ran) if id.endswith(".bench"))
    assert (
        all(id.endswith(".bench") for id in pool.ran[first_bench:]) and pool.ran[-1] == "tiny.base.fp32.bench"
    )


def test_a_stopped_sweep_goes_on_where_it_was(workdir: Path) -> None:
    path = known()
    pool = FakePool(dies="tiny.attn1.fp32.check")
    with pytest.raises(KeyboardInterrupt):
        go(path, pool)
    assert entries(path)["tiny.attn1.fp32.check"]["state"] == "waiting"
    before, pool.dies = list(pool.ran), ""
    held = go(path, pool)
    assert {job["state"] for job in held.values()} == {"done"} and len(set(pool.ran)) == len(pool.ran) > len(
        before
    )
    assert held[before[0]]["seconds"] == 2.5  # what it took is remembered
    assert go(path, pool) == held and Rates().of(made(path)[1].jobs[0]) == 2.5


def test_what_stands_behind_a_job_that_runs_is_asked_again_when_its_turn_comes(workdir: Path) -> None:
    path, pool = known(), FakePool()
    go(path, pool)
    stale = {
        "tiny.attn2.fp32.export",
        "tiny.attn2.fp32.score.smoke",
    }  # the check of what is cut again still holds
    pool.finished -= stale
    pool.ran.clear()
    asked = []
    told = pool.is_done

    def is_done(job: Job, read: recipe.Recipe) -> bool:
        asked.append((job.id, "tiny.attn2.fp32.export" in pool.finished))
        return told(job, read)

    pool.is_done = is_done
    held = go(path, pool)
    assert set(pool.ran) == stale and {job["state"] for job in held.values()} == {"done"}
    assert all(
        again for id, again in asked if id.startswith("tiny.attn2.fp32.") and not id.endswith("export")
    )


def test_a_limit_stops_after_so_many_jobs(workdir: Path) -> None:
    pool = FakePool()
    held = go(known(), pool, limit=4)
    assert (
        len(pool.ran) == 4
        and sum(job["state"] == "done" and job["stage"] != "select" for job in held.values()) == 4
    )
    assert any(job["error"] == "not started: --limit 4" for job in held.values())
    go(Path("grid.toml"), pool)
    assert len(pool.ran) == len(set(pool.ran)) > 4


def test_what_a_failed_calibration_leaves_unknown_is_a_gap_with_a_name(workdir: Path) -> None:
    held = go(known(GRID.replace('"last-but-final"', '"cosine"')), FakePool(fails=("tiny.calibrate",)))
    assert held["tiny.attn.0.3.cosine.select"]["error"] == "waiting: needs tiny.calibrate"
    assert held["tiny.attn2.fp32.bench"]["state"] == "done"


def job(id: str, *command: str, **more: Any) -> Job:
    return Job(id, "export", "m", GridCell(), ("pipeline", *command), **more)


def wait(pool: LocalPool) -> list[Outcome]:
    found: list[Outcome] = []
    while pool.running:
        found += pool.ended(1.0)
    return found


def test_jobs_are_processes_whose_exit_and_words_are_kept(workdir: Path) -> None:
    pool = LocalPool(2, Path("logs"))
    pool.start(job("good", "list", "--json", stdout=Path("out/good.json")))
    pool.start(job("bad", "show", "nothing.onnx"))
    assert not pool.takes(job("third", "list"))
    found = {one.id: one for one in wait(pool)}
    assert found["good"].error is None and json.loads(Path("out/good.json").read_text()) is not None
    assert found["bad"].error == "nothing.onnx does not exist; `pipeline list` shows what does"
    assert "nothing.onnx" in Path("logs/bad.log").read_text() and found["bad"].seconds > 0
    assert pool.takes(job("clock", "bench", exclusive=True))
    pool.start(job("long", "list"))
    assert not pool.takes(job("clock", "bench", exclusive=True)) and pool.takes(job("third", "list"))
    pid = pool.running["long"][1].process.pid
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    pool.start(job("clock", "list", exclusive=True))
    assert not pool.takes(job("third", "list"))
    assert [one.error for one in wait(pool)] == [None]


def test_a_job_dies_with_the_sweep_however_that_dies(workdir: Path) -> None:
    """The launcher asks the kernel for it; here the starter is gone before the job has begun, or right after."""
    import subprocess

    script = (
        "import sys, pathlib\n"
        "from pipeline.sweep.local import Process\n"
        "p = Process('job', ('pipeline', 'list'), pathlib.Path('logs'), None)\n"
        "print(p.process.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=tiny.environment(), check=False
    )
    pid = int(told.stdout)
    until = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        state = (
            Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            if Path(f"/proc/{pid}/stat").exists()
            else "Z"
        )
        if state == "Z":
            break
        time.sleep(0.05)
    assert time.monotonic() < until and Path("logs/job.out").read_text() == ""


def test_one_sweep_of_a_recipe_at_a_time(workdir: Path) -> None:
    with ledger.alone(store.Project().sweep("grid")), pytest.raises(UserError, match="runs already"):
        sweep.sweep(known(), pool=FakePool())
    for wrong in ({"jobs": 0}, {"limit": 0}):
        with pytest.raises(UserError, match="at least 1"):
            sweep.sweep(known(), **wrong)


def test_without_ray_one_line_names_the_extra(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'skip-pipeline\[ray\]'"):
        sweep.sweep(known(), ray="local")


def test_the_view_shows_how_far_it_is_and_what_failed(workdir: Path) -> None:
    path = known()
    out = io.StringIO()
    book = Ledger.open(path)
    pool = FakePool(fails=("tiny.attn2.fp32.check",))
    with ProgressView("grid", book, Console(file=out, force_terminal=True, width=150)) as view:
        sweep.Sweep(recipe.read(path), book, pool, view, None, pool.is_done).run()
        view.update()
    shown = out.getvalue()
    assert (
        "sweep grid: 33 of 36 jobs done, 1 failed" in shown
        and "the disk is full" in shown
        and "FAILED" in shown
    )


def test_the_command_exits_with_1_and_a_summary(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = known()
    book = Ledger.open(path)
    book.take(made(path)[1].jobs)
    first = next(iter(book.jobs))
    book.states[first] = ledger.JobStatus("failed", "no such model")
    book.write()
    monkeypatch.setattr(sweep, "sweep", lambda *_, **__: book)
    monkeypatch.setattr(sys, "argv", ["pipeline", "sweep", str(path)])
    with pytest.raises(SystemExit) as exit:
        main()
    told = capsys.readouterr()
    assert exit.value.code == 1 and "failed  tiny.base.fp32.export: no such model" in told.out
    assert "1 of 36 jobs failed" in told.err and "evals/sweeps/grid/ledger.json" in told.out
    monkeypatch.setattr(sys, "argv", ["pipeline", "sweep", str(path), "--dry-run", "--json"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 0 and json.loads(capsys.readouterr().out)["jobs"]
