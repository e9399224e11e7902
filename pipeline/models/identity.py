"""What a checkpoint is: digests of weights and tokenizer, and whether its source has changed since."""

from __future__ import annotations

import filecmp
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.models import safetensors_index
from pipeline.models.checkpoint_files import files_of
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
    "vocab.json", "merges.txt",
)  # fmt: skip


def of_weights(files: list[Path]) -> str:
    """SHA-256 over names, sizes and headers of safetensors files; no weight is read."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(safetensors_index.header_bytes(file))
    return digest.hexdigest()


def tokenizer_digest(folder: Path) -> str | None:
    """SHA-256 over the files that make the tokenizer; None where there is none."""
    lines = [f"{name}:{store.sha256(folder / name)}" for name in TOKENIZER_FILES if (folder / name).is_file()]
    return store.text_digest("\n".join(lines)) if lines else None


def stamp(file: Path) -> tuple[int, int]:
    """(bytes, time of change in ns): equal stamps are taken for equal content."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def verify(checkpoint: Checkpoint) -> None:
    """Hashes the weights' contents and compares them with source.json, or records them there the first time.

    Raises:
        UserError: a file is not what it was.
    """
    folder, source = checkpoint.folder, checkpoint.source
    digests = {file.name: store.sha256(file) for file in checkpoint.files}
    known = {**source.etags, **source.sha256}
    for name, digest in digests.items():
        # The hub gives a git blob id, which is shorter, for files outside its large-file storage.
        if len(known.get(name, "")) == len(digest) and known[name] != digest:
            raise UserError(
                f"{folder / name} is not what was fetched (SHA-256 differs); remove it and export again"
            )
    store.write_json(folder / store.SOURCE, source.replaced(sha256=digests).plain())


def refuse_changed(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, compared with the files that it was made from, where they still exist.

    Files of the same size and date are not read.

    Raises:
        UserError: the source holds something else now, and earlier graphs and results would pass for its
            own.
    """
    folder, source = checkpoint.folder, checkpoint.source
    if source.kind not in ("folder", "gguf"):
        return checkpoint
    origin = checkpoint.origin
    changed = None
    if source.kind == "folder" and origin.is_dir():
        changed = _changed_file(origin, files_of(folder))
    elif source.kind == "gguf" and origin.is_file() and stamp(origin) != source.file_stamp:
        changed = origin if store.sha256(origin) != source.file_sha256 else None
    if changed is not None:
        raise UserError(
            f"{changed} has changed since {folder} was made from it; "
            f"move {folder} away, or give the new model a new name"
        )
    return checkpoint


def _changed_file(origin: Path, copies: list[Path]) -> Path | None:
    """The first file of `origin` whose content is not that of its copy."""
    for copy in copies:
        file = origin / copy.name
        if file.is_file() and not filecmp.cmp(file, copy):
            return file
    return None
