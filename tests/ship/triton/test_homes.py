"""Homes of servers: one without an owner is swept away, one that has an owner never."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.ship.triton import homes
from tests import tiny

OWNS = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from pathlib import Path
from pipeline.ship.triton import homes
homes.SHARED_MEMORY = Path(sys.argv[2])
home = homes.claim()
(home.folder / "backends").mkdir()
(homes.SHARED_MEMORY / f"{home.shm_prefix}region").touch()
print(home.folder, flush=True)
input()
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of homes, and that of shared memory."""
    temporary, memory = tmp_path / "tmp", tmp_path / "shm"
    temporary.mkdir()
    memory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(homes, "SHARED_MEMORY", memory)
    return temporary, memory


def owner(places: tuple[Path, Path]) -> tuple[subprocess.Popen[str], Path]:
    """A process that owns a home."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNS, *map(str, places)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_owner_left_is_swept_away_and_a_live_ones_not(places: tuple[Path, Path]) -> None:
    temporary, memory = places
    (memory / "pipeline-of another program").touch()
    (alive, its_home), (killed, left) = owner(places), owner(places)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"{left}/backends"])
    beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"{its_home}/backends"])
    try:
        killed.kill()
        killed.wait()
        with Path(left / homes.OWNER).open() as file:
            prefix = file.read()
        home = homes.claim()
        assert child.wait(10) == -9 and beside.poll() is None  # its server, that was left
        assert {path for path in temporary.iterdir() if path.is_dir()} == {its_home, home.folder}
        assert len(list(memory.iterdir())) == 2 and not list(memory.glob(f"{prefix}*"))
        home.remove()
        alive.communicate("\n")
        homes.sweep(temporary)
        assert list(temporary.iterdir()) == [] and [path.name for path in memory.iterdir()] == [
            "pipeline-of another program"
        ]
    finally:
        for process in (alive, killed, child, beside):
            process.kill()
            process.wait()


def test_a_folder_of_an_earlier_version_goes_when_it_is_old_and_unused(places: tuple[Path, Path]) -> None:
    temporary, _ = places
    old, new, other = (temporary / f"{homes.PREFIX}{name * 8}" for name in "abc")
    for folder in (old, new):
        (folder / "backends").mkdir(parents=True)
    other.symlink_to(old)
    past = time.time() - 2 * homes.ABANDONED
    os.utime(old, (past, past))
    homes.sweep(temporary)
    assert not old.exists() and new.exists() and other.is_symlink()


@pytest.mark.parametrize("content", ["", "*", "pipeline-", "../../x", "pipeline-0123456789-/../"])
def test_an_owners_file_that_was_damaged_takes_no_memory_of_others(
    content: str, places: tuple[Path, Path]
) -> None:
    temporary, memory = places
    folder = temporary / f"{homes.PREFIX}abcdefgh"
    folder.mkdir()
    (folder / homes.OWNER).write_text(content)
    (memory / "pipeline-0123456789-x").touch()
    homes.sweep(temporary)
    assert not folder.exists() and list(memory.iterdir())
