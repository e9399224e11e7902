"""The files of a checkpoint in a folder: which there are, and how a local one is copied."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

from pipeline import store
from pipeline.models import weight_files
from pipeline.types import UserError

log = logging.getLogger(__name__)
SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", "qwen.tiktoken",
)  # fmt: skip
"""What a checkpoint may hold beside its weights and their index; nothing else is fetched or copied."""
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (a reflink)


def files_of(folder: Path) -> list[Path]:
    """The files of the checkpoint in a folder: config, tokenizer, weights.

    Raises:
        UserError: it holds no safetensors weights.
    """
    small = [folder / name for name in SMALL_FILES if store.records.is_there(folder / name)]
    weights = weight_files.find(folder)
    return [*small, *([weights.index] if weights.index else []), *weights.files]


def copy(source: Path, target: Path, other_way: str = "") -> None:
    """Copies a checkpoint's files to another folder with their dates, which spare a comparison later.

    Where the file system can, they share the source's extents, and no bytes are written. They are never hard
    links: a model that is trained on in its own folder would change under the graphs that were made of it.

    Args:
        source: its folder.
        target: the other one.
        other_way: what needs no space, in words.

    Raises:
        UserError: there is no room for them; nothing is written then.
    """
    files = files_of(source)
    if not shares_extents(max(files, key=_size), target):
        _require_room(files, target, other_way)
    for file in files:
        copy_file(file, target / file.name)


def _size(file: Path) -> int:
    return file.stat().st_size


def _require_room(files: list[Path], target: Path, other_way: str) -> None:
    """Refuses a copy for which the disk has no room; says that one of gigabytes begins."""
    needed, free = sum(map(_size, files)) / 1e9, shutil.disk_usage(target).free / 1e9
    if needed > free:
        raise UserError(
            f"copying {files[0].parent} to {target} needs {needed:.3g} GB, and {free:.3g} GB are free there; "
            f"free some space, make graphs/ a link to a larger disk{other_way and ', '}{other_way}"
        )
    if needed > 1:
        log.info("copying %.3g GB to %s%s", needed, target, other_way and f" ({other_way})")


def copy_file(file: Path, target: Path) -> None:
    """Copies one file with its date; the target is the old one or the whole new one."""
    with store.atomic(target) as temporary:
        if not _reflink(file, temporary):
            shutil.copyfile(file, temporary)
        status = file.stat()
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))


def shares_extents(file: Path, folder: Path) -> bool:
    """Whether a copy of a file in a folder takes no room (btrfs, xfs)."""
    with tempfile.NamedTemporaryFile(prefix=".", suffix=".tmp", dir=folder) as trial:
        return _reflink(file, Path(trial.name))


def _reflink(source: Path, target: Path) -> bool:
    """Lets a file share the extents of another one; False where the file system cannot, or there are two."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing, _FICLONE, reading.fileno())
        except OSError:
            return False
    return True
