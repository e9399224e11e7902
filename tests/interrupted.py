"""A disk on which the n-th change, and every later one, does not happen: a process killed just there.

Python tells its audit hooks of each file that is opened, renamed, made or removed, whoever does it. Clean-up
that runs while the kill travels up finds the disk as dead as a killed process would: it changes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = (
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
WRITES = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """The process is dead."""


class _Disk:
    """What the hook knows: which folder is watched, the changes that still happen, those that did."""

    root: Path | None = None
    left = 0
    done = 0
    installed = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None or not (path := self._changed(event, arguments)):
            return
        if self.left > 0:
            self.left, self.done = self.left - 1, self.done + 1
            return
        if self.left == 0 and event == "open":  # killed after it was emptied and before it was written
            root, self.root = self.root, None
            if path.parent.is_dir() and not arguments[2] & os.O_EXCL:
                path.open("wb" if arguments[2] & os.O_TRUNC else "ab").close()
            self.root = root
        self.left = -1
        raise Killed(f"{event} {path}")

    def _changed(self, event: str, arguments: tuple[Any, ...]) -> Path | None:
        """The path under the watched folder that this event changes, if it is one."""
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not (is_write or event in CHANGES) or not isinstance(arguments[0], str | Path):
            return None
        paths = arguments[:2] if event == "os.rename" else arguments[:1]
        if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:  # relative to an open folder: rmtree
            return Path(str(arguments[0]))
        absolute = [Path(os.path.normpath(Path.cwd() / os.fsdecode(path))) for path in paths]
        return next((path for path in absolute if self.root and path.is_relative_to(self.root)), None)


_disk = _Disk()


@contextmanager
def changes(root: Path, left: int = 1 << 62) -> Iterator[Callable[[], int]]:
    """Within it, only the first `left` changes under `root` happen; the next one raises Killed.

    Yields:
        How many have happened.
    """
    if not _disk.installed:
        sys.addaudithook(_disk.hook)
        _disk.installed = True
    _disk.root, _disk.left, _disk.done = root.resolve(), left, 0
    try:
        yield lambda: _disk.done
    finally:
        _disk.root = None


def every_kill(root: Path, prepare: Callable[[], None], work: Callable[[], Any]) -> Iterator[int]:
    """Kills the work at each of its changes under `root` in turn, each time on a folder prepared anew.

    Yields:
        After each kill, the number of changes that happened.
    """
    prepare()
    with changes(root) as count:
        work()
        total = count()
    assert total, "the work changes nothing"
    for left in range(total):
        prepare()
        try:
            with changes(root, left):
                work()
        except Killed:
            yield left
        else:
            raise AssertionError(f"the work changed less than {left} times")
