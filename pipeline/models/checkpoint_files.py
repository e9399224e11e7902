"""The files of a checkpoint in a folder: which there are, and how a local one is copied."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from pipeline import store
from pipeline.models import weight_files

SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What a checkpoint may hold beside its weights and their index; nothing else is fetched or copied."""
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (a reflink)


def files_of(folder: Path) -> list[Path]:
    """The files of the checkpoint in a folder: config, tokenizer, weights.

    Raises:
        UserError: it holds no safetensors weights.
    """
    small = [folder / name for name in SMALL_FILES if (folder / name).is_file()]
    weights = weight_files.find(folder)
    return [*small, *([weights.index] if weights.index else []), *weights.files]


def copy(source: Path, target: Path) -> None:
    """Copies a checkpoint's files to another folder with their dates, which spare a comparison later."""
    for file in files_of(source):
        copy_file(file, target / file.name)


def copy_file(file: Path, target: Path) -> None:
    """Copies one file with its date; the target is the old one or the whole new one."""
    with store.atomic(target) as temporary:
        _reflink_or_copy(file, temporary)
        status = file.stat()
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))


def _reflink_or_copy(source: Path, target: Path) -> None:
    """Shares the extents where the file system can (btrfs, xfs: no bytes are written), copies elsewhere."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing, _FICLONE, reading.fileno())
            return
        except OSError:  # another file system, or one without reflinks
            pass
    shutil.copyfile(source, target)
