"""Files that can be made again (prompts, tokens): those used longest ago go when they are many."""

from __future__ import annotations

import os
import time
from pathlib import Path

MOST = 1 << 30
"""Bytes of one folder that are kept."""
SPARED = 24 * 3600
"""Seconds after its last use in which a file is left alone: another run may be about to read it."""


def used(file: Path) -> None:
    """Marks a file as used now."""
    try:
        os.utime(file)
    except OSError:
        return  # a project that cannot be written is read as well


def sweep(folder: Path, pattern: str, most: int = MOST, spared: float = SPARED) -> None:
    """Removes the files that were used longest ago, until the others have `most` bytes.

    Args:
        folder: where they lie.
        pattern: of their names.
        most: bytes.
        spared: seconds after their last use in which they stay.
    """
    ages = list[tuple[float, int, Path]]()
    for file in folder.glob(pattern):
        try:
            stat = file.stat()
        except OSError:
            continue  # another run swept it
        ages.append((stat.st_mtime, stat.st_size, file))
    total, now = sum(size for _, size, _ in ages), time.time()
    for last, size, file in sorted(ages):
        if total <= most or now - last < spared:
            return
        file.unlink(missing_ok=True)
        total -= size
