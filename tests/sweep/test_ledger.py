"""The ledger: states of jobs, what is written of them, and what is read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.store import records
from pipeline.sweep import ledger, sweep
from pipeline.sweep.jobs import GridCell, Job, PendingCell
from pipeline.sweep.ledger import DONE, FAILED, RUNNING, SHARED, WAITING, JobStatus, Ledger, Rates
from pipeline.types import UserError
from tests.grids import FakePool, known

CELL = GridCell("attn", 0.25, "last")


def job(id: str, stage: str = "check", **more: object) -> Job:
    return Job(id, stage, "m", CELL, ("pipeline", stage, "graphs/m x/a.onnx"), **more)  # type: ignore[arg-type]


def test_a_job_waits_for_what_it_needs_and_names_a_failed_one_first(workdir: Path) -> None:
    book = Ledger.open(known())
    last = job("c", needs=("a", "b"))
    assert [one.id for one in book.take([job("a"), job("b"), last])] == ["a", "b", "c"]
    assert book.waits_for(last) == "a"
    book.states["b"] = JobStatus(FAILED, "no")
    assert book.waits_for(last) == "b" and [one.id for one in book.failed()] == ["b"]
    book.states["a"], book.states["b"] = JobStatus(DONE), JobStatus(SHARED)
    assert book.waits_for(last) is None
    assert book.take([job("a"), job("d")]) == [job("d")] and book.states["a"].state == DONE


def test_the_record_says_how_each_job_stands(workdir: Path) -> None:
    path = known()
    book = Ledger.open(path)
    choice = job("pick", "select", inline=True, variant="attn2")
    twin = job("twin", "select", inline=True, variant="attn2", shared="pick")
    book.take([job("a", outputs=(Path("evals/a.json"),)), job("b", needs=("a",)), choice, twin])
    book.states["a"] = JobStatus(RUNNING)
    book.pending = [PendingCell("m.later.select", "m", CELL, "a", "chosen by last once exported")]
    book.write()
    record = records.read(records.LedgerRecord, book.file)
    assert record == book.record() and record.recipe == "grid.toml"
    assert record.recipe_sha256 == store.sha256(path)
    states = {entry.id: (entry.state, entry.error) for entry in record.jobs}
    assert states == {
        "a": (RUNNING, None),
        "b": (WAITING, "waiting: needs a"),
        "pick": (DONE, None),
        "twin": (SHARED, "shared with pick"),
        "m.later.select": (WAITING, "waiting: needs a"),
    }
    assert record.jobs[0].command == ("pipeline", "check", "graphs/m x/a.onnx")
    assert record.jobs[0].outputs == ("evals/a.json",) and record.jobs[0].select == "last"
    assert book.total == 2 and book.count(RUNNING) == 1 and book.count(DONE) == 0
    keys = "id stage model kind frac select variant precision task state error seconds command outputs"
    assert set(json.loads(book.file.read_text())["jobs"][0]) == set(keys.split())


def test_what_a_job_took_is_remembered_and_becomes_a_rate(workdir: Path) -> None:
    path = known()
    book = Ledger.open(path)
    book.take([job("a"), job("b"), job("c", "bench")])
    book.states["a"], book.states["b"] = JobStatus(DONE, None, 2.0), JobStatus(DONE, None, 4.0)
    book.states["c"] = JobStatus(FAILED, "no", 9.0)
    book.write()
    again = Ledger.open(path)
    again.take([job("a")])
    again.mark_done(job("a"))
    assert again.states["a"] == JobStatus(DONE, None, 2.0)
    rates = Rates()
    assert rates.of(job("x")) == 3.0 and rates.of(job("x", "bench")) is None
    rates.add("bench", "m", None, 5.0)
    assert rates.of(job("x", "bench")) == 5.0


@pytest.mark.parametrize("text", ["{", "[]", '{"jobs": [{"id": 3}]}', ""])
def test_a_ledger_that_cannot_be_read_decides_nothing(workdir: Path, text: str) -> None:
    path = known()
    book = Ledger.open(path)
    book.folder.mkdir(parents=True)
    book.file.write_text(text)
    assert Ledger.open(path).known_seconds == {} and Rates().seconds == {}


def test_one_sweep_of_a_recipe_at_a_time(workdir: Path) -> None:
    with ledger.alone(store.Project().sweep("grid")), pytest.raises(UserError, match="runs already"):
        sweep.sweep(known(), pool=FakePool())
    with ledger.alone(store.Project().sweep("grid")):
        pass
