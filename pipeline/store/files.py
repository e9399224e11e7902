"""Atomic writes, locks, JSON and digests."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline.store.records.base import read_bytes
from pipeline.types import UserError, file_name

_PATIENCE = 1000
"""So many times the folder of a lock may vanish before its file is there."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; on success it is synced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:  # from before it is there: a signal may come at any line
        temporary.touch(mode=0o600, exist_ok=False)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A temporary name of 8 random letters beside a path, which no two processes choose."""
    return path.with_name(f".{file_name(path.name, 80)}.{secrets.token_hex(4)}.tmp")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Any) -> None:
    """Writes data as JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
def lock(folder: Path, wait: bool = True, make: bool = True) -> Iterator[None]:
    """One writer at a time in a folder, which is made where it is missing, unless `make` is False.

    The lock's file lies beside the folder, so that whoever holds the lock may remove the folder. Only where
    nothing can be written there, beside a user's own folder, it lies inside. The kernel drops the lock when a
    process dies, however it dies; its file stays then, and holds nobody up. A folder that was made here goes
    again if nothing was written there.

    Raises:
        BlockingIOError: another one writes, and `wait` is False.
    """
    whole = folder.resolve()
    new = [place for place in (whole, *whole.parents) if not place.exists()]
    empty = new
    try:
        with _lock_file(whole, wait) as path:
            if path.parent != whole:  # the next owner may have made the folder, and not filled it yet
                empty = new[1:]
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            try:
                yield
            finally:
                _remove_empty(new[:1])
    finally:
        _remove_empty(empty)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Removes those of some folders, the innermost first, that are there and have nothing in them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _lock_file(whole: Path, wait: bool) -> Iterator[Path]:
    """Holds the lock's file, yields its path, and removes it. Who waited for a removed one takes the new.

    Raises:
        UserError: nothing can be made there: below /proc, say.
    """
    refusals = 0
    while True:
        try:
            whole.parent.mkdir(parents=True, exist_ok=True)
            beside = os.access(whole.parent, os.W_OK) and whole.parent != whole
            path = whole.parent / f".{file_name(whole.name, 200)}.lock" if beside else whole / ".lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w", encoding="utf-8")
        except FileNotFoundError:  # another process has just removed the folder that it had made
            refusals += 1
            if refusals > _PATIENCE:
                raise UserError(f"nothing can be written in {whole.parent}; name another folder") from None
            continue
        with file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not _is_open_at(file, path):
                continue
            try:
                yield path
            finally:
                if _is_open_at(file, path):
                    path.unlink()
            return


def _is_open_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sweep_temporaries(folder: Path, stem: str = "") -> None:
    """Removes what a killed writer left. Call it under the `lock` of whoever writes these files.

    Args:
        folder: where they lie.
        stem: how their names begin, in a folder with several writers.
    """
    for path in folder.glob(f".{stem}*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder beside another, removed in the end unless it was renamed; for its `lock`'s owner."""
    remove_unfinished(folder)
    temporary = _beside(folder)
    try:
        temporary.mkdir(mode=0o700)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Removes what a killed `atomic` or `staging` of this path left. Call it under the `lock` of the path."""
    # Eight letters: a * would take what is being written for NAME.x, too.
    for left in path.parent.glob(f".{glob.escape(file_name(path.name, 80))}.????????.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


class Stamp(NamedTuple):
    """What changes with a file's content: equal stamps are taken for equal content.

    Attributes:
        bytes: its size.
        mtime_ns: time of the last change of its content, which programs can set as they like.
        ctime_ns: time of the last change of its inode, which the kernel sets at every write.
        inode: its number.
    """

    bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamp(path: Path) -> Stamp:
    """A file's stamp. Waits for the kernel's clock to tick, so that a later write gives another one."""
    status = path.stat()
    age = time.time_ns() - status.st_ctime_ns
    if 0 <= age < _TICK:
        time.sleep((_TICK - age) / 1e9)
        status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


_TICK = 20_000_000
"""Nanoseconds: more than the step of the clock that dates files (Linux: 1 to 10 ms)."""
_sums: dict[Stamp, str] = {}


def sha256(path: Path, fresh: bool = False) -> str:
    """The SHA-256 of a file, in hexadecimal. A content is read once a process.

    Args:
        path: the file.
        fresh: read it whatever is known: damage on a disk leaves no trace in size and dates.

    Raises:
        UserError: it is written to while it is read.
    """
    before = stamp(path)
    if fresh or before not in _sums:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if stamp(path) != before:
            raise UserError(f"{path} was written to while it was read; run the command again")
        _sums[before] = digest
    return _sums[before]


def text_digest(text: str) -> str:
    """The SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
