"""What may lie where a file is expected: pipes, devices, folders, links to nowhere or to themselves."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

_SPARSE = 5_000_000_000


def _sparse(path: Path) -> None:
    """A file of 5 GB of noughts, which takes no room."""
    with path.open("wb") as file:
        file.truncate(_SPARSE)


def _unreadable(path: Path) -> None:
    path.write_bytes(b"{}")
    path.chmod(0)


def _grown(path: Path, data: bytes) -> None:
    """The valid file, followed by 5 GB of noughts."""
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(_SPARSE)


THINGS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "tty": lambda path: path.symlink_to("/dev/ptmx"),
    "folder": Path.mkdir,
    "dangling": lambda path: path.symlink_to(path.parent / "nowhere"),
    "loop": lambda path: path.symlink_to(path),
    "long": lambda path: path.symlink_to("x" * 300),
    "proc": lambda path: path.symlink_to("/proc/self/mem"),
    "sparse": _sparse,
    "unreadable": _unreadable,
    "missing": lambda path: None,
}
"""Name → what puts it at a path where nothing is."""


def put(path: Path, data: bytes, draw: random.Random) -> str:
    """Puts one of them at a path; says which."""
    name = draw.choice([*THINGS, "grown"])
    if name == "grown":
        _grown(path, data)
    else:
        THINGS[name](path)
    return name
