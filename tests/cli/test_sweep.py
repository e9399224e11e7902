"""sweep as a command: the plan, and how a run ends."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.store.records import LedgerEntry
from pipeline.sweep import sweep as stage
from pipeline.types import Failed, UserError
from tests import grids
from tests.commands import run


def test_a_dry_run_runs_nothing(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = grids.known()
    words = run(capsys, "sweep", recipe, "--dry-run")
    assert "pipeline export" in words and "pipeline check" in words
    assert json.loads(run(capsys, "sweep", recipe, "--dry-run", "--json"))
    assert not Path("evals/sweeps").exists()


def test_a_failed_job_is_said_and_the_rest_goes_on(workdir: Path, monkeypatch, capsys) -> None:
    recipe = grids.known()
    done = LedgerEntry(id="a", stage="check", model="m", state="done")
    ledger = SimpleNamespace(
        total=2,
        folder=Path("evals/sweeps/grid"),
        file=Path("ledger.json"),
        states={"b": SimpleNamespace(error="no luck")},
        failed=list,
        count={"done": 2, "failed": 0, "waiting": 0}.get,
        record=lambda: done,
    )
    monkeypatch.setattr(stage, "sweep", lambda *_, **__: ledger)
    assert run(capsys, "sweep", recipe) == "2 done\nledger.json\n"
    assert json.loads(run(capsys, "sweep", recipe, "--json")) == done.plain()
    ledger.failed = lambda: [SimpleNamespace(id="b")]
    with pytest.raises(Failed, match="1 of 2 jobs failed; evals/sweeps/grid/logs has what each said"):
        run(capsys, "sweep", recipe)
    assert "failed  b: no luck" in capsys.readouterr().out


def test_no_recipe(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"none\.toml"):
        run(capsys, "sweep", "none.toml", "--dry-run")
