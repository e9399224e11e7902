"""The kinds of files that come from outside: a valid one of each, and what a command does with it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Build = Callable[[Path], None]
Use = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        group: the class that it is counted in.
        name: of its seed.
        files: name → format (`mutations.FORMATS`) of the files that are made hostile.
        build: writes a valid folder of this kind.
        use: reads the folder as commands do; a second folder is free to be written.
    """

    group: str
    name: str
    files: dict[str, str]
    build: Build
    use: Use


def every() -> list[Kind]:
    """All kinds, in the order of the table."""
    from tests.fuzz import checkpoints, measured, written

    return [*checkpoints.kinds(), *written.kinds(), *measured.kinds()]


def copied(folder: Path, target: Path) -> Path:
    """A copy of a seed to work on."""
    shutil.copytree(folder, target, symlinks=True)
    return target
