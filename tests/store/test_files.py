"""Atomic writes, locks, JSON and digests."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import store
from pipeline.types import UserError
from tests import tiny


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "é.json"
    store.write_json(path, {"a": [1, "é"]})
    store.write_json(path, {"b": None})
    assert store.read_json(path) == {"b": None} and path.read_text().endswith("}\n")
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail() -> None:
        with store.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_and_a_temporary_that_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline import store\n"
        "with store.atomic(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    writer = subprocess.run([sys.executable, "-c", script, str(path)], env=tiny.environment(), check=False)
    assert writer.returncode == -signal.SIGKILL and path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with store.lock(tmp_path):
        store.sweep_temporaries(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"a.json"}


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 240}.json"
    store.write_json(path, 1)
    assert store.read_json(path) == 1


def _hold(folder: str, ready: str) -> None:
    with store.lock(Path(folder)):
        os.write(int(ready), b"x")
        signal.pause()


def test_one_writer_at_a_time_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path), str(writing)))
    holder.start()
    try:
        assert os.read(reading, 1) == b"x"
        with pytest.raises(BlockingIOError), store.lock(tmp_path, wait=False):
            pass
    finally:
        holder.kill()
        holder.join()
        os.close(reading)
        os.close(writing)
    with store.lock(tmp_path, wait=False):
        pass


def _work_and_remove(folder: Path, log: Path, is_inside: bool) -> None:
    """Owns the folder, notes when, and removes it with all that is in it, or the lock's file alone."""
    for _ in range(20):
        with store.lock(folder), log.open("a") as out:
            print("begin", os.getpid(), file=out, flush=True)
            (folder / "file").write_text("half")
            time.sleep(0.002)
            print("end", os.getpid(), file=out, flush=True)
            if is_inside:
                (folder / ".lock").unlink()
            else:
                shutil.rmtree(folder)


@pytest.mark.parametrize("is_inside", [False, True])
def test_processes_that_remove_the_folder_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_inside: bool
) -> None:
    """Also where the lock lies inside, and is taken away under those who wait for it."""
    if is_inside:
        monkeypatch.setattr(os, "access", lambda *_: False)
    folder, log = tmp_path / "model", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work_and_remove, args=(folder, log, is_inside)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 160
    for (first, owner), (second, same) in zip(lines[::2], lines[1::2], strict=True):
        assert (first, second) == ("begin", "end") and owner == same


def test_a_folder_that_the_next_owner_has_just_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is empty until that owner writes, and the one before must not take it for its own."""
    folder, unlink = tmp_path / "model", Path.unlink

    def release_to_the_next(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        folder.mkdir()

    with store.lock(folder):
        folder.rmdir()
        monkeypatch.setattr(Path, "unlink", release_to_the_next)
    assert folder.is_dir()


def test_a_lock_lies_beside_its_folder_where_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "graphs" / "m"
    with store.lock(folder):
        assert not list(folder.iterdir()) and {p.name for p in folder.parent.iterdir()} == {".m.lock", "m"}
        (folder / "file").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # a user's folder among those of others
    with store.lock(folder):
        assert sorted(p.name for p in folder.iterdir()) == [".lock", "file"]


def test_a_lock_leaves_nothing_of_a_folder_that_was_not_written(tmp_path: Path) -> None:
    """Neither its file nor the folders that it made; what was there before stays."""
    folder = tmp_path / "graphs" / "m"
    for make in (False, True):
        with pytest.raises(ValueError, match="refused"), store.lock(folder, make=make):
            raise ValueError("refused")
        assert not list(tmp_path.iterdir())
    with store.lock(folder):
        (folder / "base.onnx").write_text("x")
    with store.lock(folder.with_name("other")):
        pass
    assert sorted(p.name for p in folder.parent.iterdir()) == ["m"]
    (folder / "base.onnx").unlink()
    with store.lock(folder):
        pass
    assert folder.is_dir()


def test_digests_are_sha_256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert store.sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert store.text_digest("é") == hashlib.sha256("é".encode()).hexdigest()


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as JSON") as error:
        store.read_json(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        store.read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        store.read_json(tmp_path)


def test_a_folder_in_which_nothing_can_be_made_is_said() -> None:
    with pytest.raises(UserError, match="nothing can be written in /proc"), store.lock(Path("/proc/x")):
        pass


def test_what_a_killed_writer_of_a_path_left_is_removed_and_no_others(tmp_path: Path) -> None:
    target = tmp_path / "out[1]"
    own = [tmp_path / ".out[1].abcdefgh.tmp", tmp_path / ".out[1].12345678.tmp"]
    others = [tmp_path / ".out[1].x.abcdefgh.tmp", tmp_path / ".out1.abcdefgh.tmp", tmp_path / "out[1].tmp"]
    own[0].mkdir()
    (own[0] / "part").touch()
    for file in (own[1], *others):
        file.touch()
    with store.staging(target) as folder:
        assert folder.is_dir() and folder.parent == tmp_path
        assert not any(path.exists() for path in own) and all(path.exists() for path in others)
        (folder / "part").touch()
    assert not folder.exists() and not target.exists()
    with store.staging(target) as folder:
        folder.replace(target)
    assert target.is_dir()
