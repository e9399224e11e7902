"""How a sweep runs jobs that fail, wait, share and measure time, and what it writes down of them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline import store
from pipeline.cli.commands import main
from pipeline.store.records import LedgerEntry
from pipeline.sweep import ledger, recipe, sweep
from pipeline.sweep.jobs import Job
from pipeline.sweep.ledger import Ledger, Rates
from pipeline.types import UserError
from tests.grids import GRID, FakePool, entries, known, planned, run
from tests.interrupted import every_kill

SMALL = """
models = ["{model}"]
kinds = ["mlp"]
fractions = [0.3]
selectors = ["last"]
stages = ["export", "check"]
"""


def test_a_failure_is_recorded_and_the_rest_goes_on(workdir: Path) -> None:
    pool = FakePool(fails=("tiny.attn2.fp32.check",), lies=("tiny.mlp2.fp32.score.smoke",))
    jobs = run(known(), pool)
    failed = jobs["tiny.attn2.fp32.check"]
    assert failed.state == "failed" and failed.error == "the disk is full"
    for name in ("score.smoke", "bench"):
        entry = jobs[f"tiny.attn2.fp32.{name}"]
        assert entry.state == "waiting" and entry.error == "waiting: needs tiny.attn2.fp32.check"
    assert str(jobs["tiny.mlp2.fp32.score.smoke"].error).startswith("exited with 0, and evals/results/tiny/")
    others = [
        job
        for id, job in jobs.items()
        if not id.startswith("tiny.attn2.fp32") and id != "tiny.mlp2.fp32.score.smoke"
    ]
    assert {job.state for job in others} == {"done"} and len(others) > 20


def test_the_ledger_has_commands_times_and_cells(workdir: Path) -> None:
    path = known()
    export = run(path, FakePool())["tiny.mlp1.fp32.export"]
    assert export.command == ("pipeline", "export", "tiny", "--skip", "mlp1") and export.seconds == 2.5
    assert (export.kind, export.frac, export.select) == ("mlp", 0.3, "last-but-final")
    assert (export.variant, export.precision) == ("mlp1", "fp32")
    assert export.outputs == ("graphs/tiny/mlp1.fp32.onnx",)


def test_measurements_of_time_come_last_and_the_base_last_of_all(workdir: Path) -> None:
    pool = FakePool()
    run(known(), pool)
    first = next(k for k, id in enumerate(pool.ran) if id.endswith(".bench"))
    assert all(id.endswith(".bench") for id in pool.ran[first:])
    assert pool.ran[-1] == "tiny.base.fp32.bench"


def test_a_stopped_sweep_goes_on_where_it_was(workdir: Path) -> None:
    path = known()
    pool = FakePool(dies="tiny.attn1.fp32.check")
    with pytest.raises(KeyboardInterrupt):
        run(path, pool)
    assert entries(path)["tiny.attn1.fp32.check"].state == "waiting"
    before, pool.dies = list(pool.ran), ""
    jobs = run(path, pool)
    assert {job.state for job in jobs.values()} == {"done"}
    assert len(set(pool.ran)) == len(pool.ran) > len(before)
    assert jobs[before[0]].seconds == 2.5  # what it took is remembered
    assert run(path, pool) == jobs and Rates().of(planned(path)[1].jobs[0]) == 2.5


def test_what_stands_behind_a_job_that_runs_is_asked_again_when_its_turn_comes(workdir: Path) -> None:
    path, pool = known(), FakePool()
    run(path, pool)
    # The check of what is cut again still holds.
    stale = {"tiny.attn2.fp32.export", "tiny.attn2.fp32.score.smoke"}
    pool.finished -= stale
    pool.ran.clear()
    questions = []
    is_done = pool.is_done

    def recorded(job: Job, settings: recipe.Recipe) -> bool:
        questions.append((job.id, "tiny.attn2.fp32.export" in pool.finished))
        return is_done(job, settings)

    pool.is_done = recorded  # type: ignore[method-assign]
    jobs = run(path, pool)
    assert set(pool.ran) == stale and {job.state for job in jobs.values()} == {"done"}
    behind = [(id, exported) for id, exported in questions if id.startswith("tiny.attn2.fp32.")]
    assert all(exported for id, exported in behind if not id.endswith("export"))


def test_a_limit_stops_after_so_many_jobs(workdir: Path) -> None:
    pool = FakePool()
    jobs = run(known(), pool, limit=4)
    assert len(pool.ran) == 4
    assert sum(job.state == "done" and job.stage != "select" for job in jobs.values()) == 4
    assert any(job.error == "not started: --limit 4" for job in jobs.values())
    run(Path("grid.toml"), pool)
    assert len(pool.ran) == len(set(pool.ran)) > 4


def test_a_cell_behind_a_failed_calibration_is_a_gap_with_a_name(workdir: Path) -> None:
    jobs = run(known(GRID.replace('"last-but-final"', '"cosine"')), FakePool(fails=("tiny.calibrate",)))
    assert jobs["tiny.attn.0.3.cosine.select"].error == "waiting: needs tiny.calibrate"
    assert jobs["tiny.attn2.fp32.bench"].state == "done"


@pytest.mark.parametrize("options", [{"jobs": 0}, {"limit": 0}])
def test_no_jobs_at_all_are_refused(workdir: Path, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        sweep.sweep(known(), **options)  # type: ignore[arg-type]


def test_the_command_exits_with_1_and_a_summary(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = known()
    book = Ledger.open(path)
    book.take(planned(path)[1].jobs)
    first = next(iter(book.jobs))
    book.states[first] = ledger.JobStatus("failed", "no such model")
    book.write()
    monkeypatch.setattr(sweep, "sweep", lambda *_, **__: book)
    monkeypatch.setattr(sys, "argv", ["pipeline", "sweep", str(path)])
    with pytest.raises(SystemExit) as exit:
        main()
    out, err = capsys.readouterr()
    assert exit.value.code == 1 and "failed  tiny.base.fp32.export: no such model" in out
    assert "1 of 36 jobs failed" in err and "evals/sweeps/grid/ledger.json" in out
    monkeypatch.setattr(sys, "argv", ["pipeline", "sweep", str(path), "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out) == store.read_json(book.file)
    monkeypatch.setattr(sys, "argv", ["pipeline", "sweep", str(path), "--dry-run", "--json"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 0 and json.loads(capsys.readouterr().out)["jobs"]


@pytest.mark.slow
def test_a_sweep_that_was_killed_at_any_write_goes_on(workdir: Path) -> None:
    """The ledger is the old one or the new one; what is done is not run again, and nothing is left undone."""
    path, pool = known(SMALL), FakePool()
    jobs, place = set(run(path, pool)), store.Project().sweep(path.stem)
    ran, kills = sorted(pool.ran), 0

    def prepare() -> None:
        shutil.rmtree(place)
        pool.ran, pool.finished, pool.now = [], set(), []

    def work() -> dict[str, LedgerEntry]:
        with ledger.alone(place):
            return run(path, pool)

    for _ in every_kill(place, prepare, work):
        kills += 1
        if pool.now:  # the process of that job was killed with the sweep
            pool.ran.remove(pool.now.pop())
        if (place / ledger.FILE).exists():
            assert set(entries(path)) == jobs
        assert {job.state for job in work().values()} == {"done"}
        assert sorted(pool.ran) == ran
        assert not list(place.glob(".*.tmp"))
    assert kills > 20
