"""What needs no cluster; tests/real/test_sweep.py runs some."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.sweep import sweep
from pipeline.sweep.ray_pool import RayTask, work
from pipeline.types import UserError
from tests import needs
from tests.grids import known


def test_without_ray_one_line_names_the_extra(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'skip-pipeline\[ray\]'") as error:
        sweep.sweep(known(), ray="local")
    assert "\n" not in str(error.value)


@needs.ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_listens_is_refused_at_once(workdir: Path, address: str) -> None:
    with pytest.raises(UserError, match=f"no Ray cluster at {address} .*; start one with `ray start --head`"):
        sweep.sweep(known(), ray=address)


def test_a_worker_runs_a_job_in_the_projects_folder(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    (workdir / "logs").mkdir()
    monkeypatch.chdir("/")
    task = RayTask("job", ("pipeline", "list", "--json"), str(workdir), "logs", "out.json", "1")
    assert work(task).error is None
    assert (workdir / "out.json").read_text().startswith(("[", "{"))


def test_a_worker_without_the_projects_folder_says_so(workdir: Path) -> None:
    outcome = work(RayTask("job", ("pipeline", "list"), "/nowhere", "logs", None, None))
    assert outcome.error is not None and outcome.error.startswith(
        "/nowhere is not the project's folder on node"
    )
