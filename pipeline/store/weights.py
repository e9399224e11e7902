"""What the files of a model's weights are, by content, and whether they are still what a record speaks for.

A digest is taken once a content. It is kept with the file's size, dates and inode, in memory and in the
folder's weights.json, and is taken again where one of them differs. Among them is the time of the last change
of the inode: the kernel sets it at every write, and unlike the date of the content it cannot be put back.

Files up to WHOLE bytes are read whole. Of a larger safetensors file the sample digest covers the header and
the first, middle and last kilobyte of every tensor: it tells models apart in a second at any size. Stages
that read every weight anyway take the whole file's SHA-256 too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.store.files import Stamp, sha256, stamp, text_digest, write_json
from pipeline.store.paths import SOURCE
from pipeline.store.records import FileState, WeightsRecord, read_if_valid
from pipeline.types import UserError

log = logging.getLogger(__name__)
RECORD = "weights.json"
"""The states of the files in its folder: a cache of digests, which may be removed."""
MARK = "content:"
"""How an identity begins. Those of 0.1 and 0.2 are bare digests of headers: they say nothing of content."""
WHOLE = 64 << 20
"""Bytes of a file that is read whole for its sample digest: some 50 ms."""
SAMPLE = 1024
"""Bytes that are read at each place of a tensor."""
MAX_HEADER = 100_000_000
"""Bytes of a header at most: the limit of the safetensors library itself."""
_states: dict[Stamp, FileState] = {}
_unwritten: set[Stamp] = set()
"""Of states that no weights.json has: a copy becomes a model's folder only once its files are known."""


def state(path: Path, full: bool = False) -> FileState:
    """What a file is now; it is read only where nothing is known of this content.

    Args:
        path: a file of weights; one that is no safetensors file is always read whole.
        full: with the SHA-256 of the whole file.

    Raises:
        UserError: it is missing, or a large file without a safetensors header.
    """
    try:
        now = stamp(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    known = _states.get(now) or _recorded(path, now)
    if known is None or (full and known.sha256 is None):
        is_sampled = path.suffix == ".safetensors" and now.bytes > WHOLE
        whole = sha256(path) if full or not is_sampled else None
        sample = known.sample if known else _sampled(path, now.bytes) if is_sampled else whole or ""
        known = FileState(
            file=path.name,
            bytes=now.bytes,
            mtime_ns=now.mtime_ns,
            ctime_ns=now.ctime_ns,
            inode=now.inode,
            sample=sample,
            sha256=whole,
        )
        _unwritten.add(now)
    if now in _unwritten and _record(path.parent, known):
        _unwritten.discard(now)
    _states[now] = known
    return known.replaced(file=path.name)


def states(paths: Iterable[Path], full: bool = False) -> tuple[FileState, ...]:
    """The states of several files."""
    return tuple(state(path, full) for path in paths)


def identity(files: Iterable[FileState]) -> str:
    """What a checkpoint is: a digest of its files' names, sizes and sample digests.

    The same files give the same identity, wherever they lie and however they came there.
    """
    lines = sorted(f"{file.file} {file.bytes} {file.sample}" for file in files)
    return MARK + text_digest("\n".join(lines))


def contents(files: Iterable[Path]) -> str:
    """SHA-256 over the names and whole SHA-256 sums of a checkpoint's files: one number for every byte."""
    return contents_of(states(files, full=True))


def contents_of(files: Iterable[FileState]) -> str:
    """As `contents`, of files whose SHA-256 is known."""
    return text_digest("\n".join(sorted(f"{file.file} {file.sha256}" for file in files)))


def is_content(weights: object) -> bool:
    """Whether an identity speaks for content; those of 0.1 and 0.2 do not."""
    return isinstance(weights, str) and weights.startswith(MARK)


def is_same(known: FileState, path: Path) -> bool:
    """Whether a file is still what a record speaks for.

    Equal size, dates and inode are taken for equal content. Otherwise the whole SHA-256 is compared where the
    record has it, else the sample digest.
    """
    if not path.is_file():
        return False
    if stamp(path) == _stamp_of(known):
        return True
    if path.stat().st_size != known.bytes:
        return False
    now = state(path, full=known.sha256 is not None)
    return now.sample == known.sample and (known.sha256 is None or now.sha256 == known.sha256)


def _stamp_of(file: FileState) -> Stamp:
    return Stamp(file.bytes, file.mtime_ns, file.ctime_ns, file.inode)


def changed(files: Iterable[FileState], folder: Path) -> Path | None:
    """The first file in a folder that is not what a record speaks for; a missing one has not changed."""
    paths = ((file, folder / file.file) for file in files)
    return next((path for file, path in paths if path.exists() and not is_same(file, path)), None)


# ---- samples ----------------------------------------------------------------------------------------------


def header_bytes(stream: BinaryIO, path: Path, size: int) -> bytes:
    """The 8 length bytes and the JSON header of a safetensors file.

    Raises:
        UserError: the file is too short to be one.
    """
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
        raise UserError(
            f"{path} is truncated or no safetensors file: header of {length} bytes in a file of {size}; "
            "fetch it again"
        )
    return prefix + stream.read(length)


def _sampled(path: Path, size: int) -> str:
    """SHA-256 over a file's size, its header, and the first, middle and last kilobyte of every tensor."""
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb", buffering=0) as stream:
        header = header_bytes(stream, path, size)
        digest.update(header)
        for begin, length in _places(path, header):
            digest.update(os.pread(stream.fileno(), length, begin))
    return digest.hexdigest()


def _places(path: Path, header: bytes) -> Iterator[tuple[int, int]]:
    """(where a sample begins, its bytes), tensor by tensor."""
    try:
        entries = json.loads(header[8:])
        ranges = [entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"]
        spans = sorted((int(begin), int(end)) for begin, end in ranges)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: the safetensors header is malformed ({error}); fetch it again") from None
    for begin, end in spans:
        start, length = len(header) + begin, end - begin
        if length > 3 * SAMPLE:
            for offset in (0, (length - SAMPLE) // 2, length - SAMPLE):
                yield start + offset, SAMPLE
        elif length > 0:
            yield start, length


# ---- what is known from before ----------------------------------------------------------------------------


def _recorded(path: Path, now: Stamp) -> FileState | None:
    """What weights.json says of a file with this size, these dates and this inode."""
    record = read_if_valid(WeightsRecord, path.parent / RECORD)
    for file in record.files if record else ():
        if file.file == path.name and _stamp_of(file) == now:
            return file
    return None


def _record(folder: Path, new: FileState) -> bool:
    """Writes a state into weights.json, where the folder is a model's; a folder of others stays as it is.

    Returns:
        Whether the folder is a model's.
    """
    if not (folder / SOURCE).is_file() and not any(folder.glob("*.onnx")):
        return False
    record = read_if_valid(WeightsRecord, folder / RECORD)
    others = [file for file in (record.files if record else ()) if file.file != new.file]
    files = sorted((*others, new), key=lambda file: file.file)
    try:
        write_json(folder / RECORD, WeightsRecord(files=tuple(files)).plain())
    except OSError as error:  # a folder that may only be read: the digest is taken again by the next process
        log.debug("%s is not written: %s", folder / RECORD, error)
    return True
