"""Atomic writes, locks, JSON and digests."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.store.records.base import read_bytes
from pipeline.types import UserError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; on success it is synced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Writes data as JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file of another program, config.json say; `records.read` reads this project's own.

    Raises:
        UserError: it is missing, no regular file, too large, or no JSON.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except RecursionError:
        raise UserError(f"{path} cannot be read as JSON: nested too deep") from None
    except UserError:
        raise
    except ValueError as error:  # no UTF-8, no JSON, or an integer of thousands of digits
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


@contextlib.contextmanager
def lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """One writer at a time in a folder. The kernel drops the lock when a process dies, however it dies.

    Raises:
        BlockingIOError: another one writes, and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def sweep_temporaries(folder: Path) -> None:
    """Removes what a killed writer left. Call it under `lock`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """The SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
