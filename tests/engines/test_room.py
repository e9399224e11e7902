from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline.engines import build, room
from pipeline.types import UserError
from tests import needs
from tests.tiny_engines import graph

GB = 10**9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is free: of memory, of swap and of the disk."""
    free = SimpleNamespace(memory=24 * GB, swap=0, disk=50 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free.memory))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=free.swap))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free.disk))
    return free


def test_a_7b_model_fits_where_one_copy_of_it_does(
    workdir: Path, machine: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, plan = room.needs(round(13.5e9), stacked_bytes=9 * GB), workdir / "engines" / "a.plan"
    with caplog.at_level(logging.INFO):
        room.require(plan, wanted)
    said = "needs 14.1 GB of memory of 24.0 GB that are free, and 22.6 GB of disk of 50.0 GB"
    assert said in caplog.text
    machine.memory = 14 * GB
    with pytest.raises(UserError, match=r"a\.plan needs 14\.1 GB of memory, and 14\.0 GB are free: .*swap"):
        room.require(plan, wanted)
    machine.swap = GB
    room.require(plan, wanted)
    machine.disk = 22 * GB
    with pytest.raises(UserError, match=r"a\.plan needs 22\.6 GB of disk, and 22\.0 GB are free there"):
        room.require(plan, wanted)


def test_what_is_copied_all_the_same_counts() -> None:
    assert room.needs(4 * GB, GB).memory - room.needs(4 * GB).memory == GB


@needs.rtx
@pytest.mark.parametrize(("lacks", "what"), [("memory", "memory"), ("disk", "disk")])
def test_a_build_for_which_there_is_no_room_does_not_begin(
    project: Path, machine: SimpleNamespace, lacks: str, what: str
) -> None:
    setattr(machine, lacks, 1000)
    with pytest.raises(UserError, match=f"of {what}, and 0.0 GB are free") as caught:
        build.build(graph())
    assert "\n" not in str(caught.value) and not Path("engines").exists()
    setattr(machine, lacks, 50 * GB)
    assert build.build(graph()).is_file()
