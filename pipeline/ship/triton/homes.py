"""The temporary folder of each server, and what killed ones left behind: folders, shared memory, processes.

A lock on a file in the folder says that its owner lives: the kernel drops it however the owner ends. So the
next server sweeps away what has no owner, and never touches that of a server beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline import store

PREFIX = "pipeline-triton-"
OWNER = "owner"
"""The file that is locked; it holds the beginning of the names of the server's shared memory."""
SHARED_MEMORY = Path("/dev/shm")
ABANDONED = 3600.0
"""Seconds after which a folder without an owner's file and without processes counts as left behind."""


@dataclass(frozen=True, slots=True)
class Home:
    """A server's own folder.

    Attributes:
        folder: for its backends and its log.
        shm_prefix: how the names of its shared memory begin.
        owner: the file whose lock is held while it is open.
    """

    folder: Path
    shm_prefix: str
    owner: IO[str]

    def remove(self) -> None:
        """Removes the folder and the shared memory."""
        _remove(self.folder, self.shm_prefix)
        self.owner.close()


def claim() -> Home:
    """A new home, once those without an owner are gone."""
    place = Path(tempfile.gettempdir())
    with store.lock(place / f"{PREFIX}{os.getuid()}", make=False):  # a new folder has no owner for a moment
        sweep(place)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        owner = (folder / OWNER).open("w", encoding="utf-8")
        fcntl.flock(owner, fcntl.LOCK_EX)
        prefix = f"pipeline-{uuid.uuid4().hex[:10]}-"
        owner.write(prefix)
        owner.flush()
    return Home(folder, prefix, owner)


def sweep(place: Path) -> None:
    """Removes this user's homes whose owners are dead, and kills the servers that still run in them."""
    for folder in place.glob(f"{PREFIX}????????"):
        status = folder.lstat()
        if status.st_uid != os.getuid() or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            owner = (folder / OWNER).open(encoding="utf-8")
        except FileNotFoundError:  # of an earlier version, or its owner was killed just then
            if time.time() - status.st_mtime > ABANDONED and not _processes(folder):
                _remove(folder, "")
            continue
        with owner:
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _kill(folder)
            _remove(folder, owner.read())


def _remove(folder: Path, shm_prefix: str) -> None:
    if re.fullmatch(r"pipeline-[0-9a-f]{10}-", shm_prefix):  # '' would name the memory of all programs
        for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
            region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> list[int]:
    """Processes whose command line names something in the folder: the server, and its models' processes."""
    processes, name = [], f"{folder}/".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if name in (entry / "cmdline").read_bytes() and entry.stat().st_uid == os.getuid():
                processes.append(int(entry.name))
    return processes


def _kill(folder: Path, seconds: float = 10) -> None:
    """Kills those processes, and waits until they are gone."""
    until = time.monotonic() + seconds
    while (left := _processes(folder)) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
