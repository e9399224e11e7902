"""What a checkpoint is: digests of weights and tokenizer, and whether its source has changed since."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.models import demo
from pipeline.models.checkpoint_files import SMALL_FILES, copy_file, files_of
from pipeline.store.records import CheckpointSource, FileState
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)
_CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "qwen.tiktoken",
)  # fmt: skip


def tokenizer_digest(folder: Path) -> str | None:
    """SHA-256 over the files that make the tokenizer; None where there is none.

    Raises:
        UserError: one of them is too large for one.
    """
    files = [folder / name for name in TOKENIZER_FILES if store.records.is_there(folder / name)]
    for file in files:
        store.records.refuse_odd_file(file, store.records.MAX_BYTES)
    lines = [f"{file.name}:{store.sha256(file)}" for file in files]
    return store.text_digest("\n".join(lines)) if lines else None


def states(folder: Path) -> tuple[FileState, ...]:
    """What the files of the checkpoint in a folder are now: config, tokenizer, weights."""
    return store.weights.states(files_of(folder))


def copies(folder: Path) -> tuple[FileState, ...]:
    """What weights and config in a folder are now: what `refuse_altered` holds them to later."""
    return store.weights.states(file for file in files_of(folder) if not _is_renewable(file.name))


def verify(checkpoint: Checkpoint) -> None:
    """Hashes every byte of the weights and compares them with what is known of them, or keeps that as known.

    Raises:
        UserError: a file is not what it was when it was fetched, copied, or hashed before.
    """
    folder, source = checkpoint.folder, checkpoint.source
    digests = {file.name: store.sha256(file, fresh=True) for file in checkpoint.files}
    for file in checkpoint.files:
        if store.weights.state(file, full=True).sha256 != digests[file.name]:
            raise UserError(f"{file} was damaged: its bytes changed and its date did not; restore it")
    refuse_other_sums(folder, store.weights.states(checkpoint.files, full=True))
    if not is_in_place(folder, source):  # a user may train on in it; its digests are in weights.json
        refuse_altered(checkpoint)  # a first hash would bless what was changed since the copy
        store.write_json(folder / store.SOURCE, source.replaced(sha256=digests).plain())


def is_in_place(folder: Path, source: CheckpointSource) -> bool:
    """Whether a checkpoint lies in the user's own folder: nothing was copied."""
    record = folder / store.SOURCE
    is_own = source.kind == "folder" and store.resolved(source.origin, record).resolve() == folder.resolve()
    return is_own or not record.is_file()


def refuse_other_sums(folder: Path, files: Iterable[FileState]) -> None:
    """Compares files with the SHA-256 that the hub gave and that `export --verify` found, where one is known.

    Args:
        folder: of the checkpoint.
        files: some of it, with their SHA-256.

    Raises:
        UserError: a file is not what was fetched or copied.
    """
    record = folder / store.SOURCE
    if not record.is_file():
        return
    source = store.records.read(CheckpointSource, record)
    known = {} if is_in_place(folder, source) else {**source.etags, **source.sha256}
    for file in files:
        # The hub gives a git blob id, which is shorter, for files outside its large-file storage.
        digest = known.get(file.file, "")
        if len(digest) == 64 and digest != file.sha256:
            raise UserError(
                f"{folder / file.file} is not what was fetched (SHA-256 differs); remove it and export again"
            )


def refuse_changed(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, compared with the files that it was made from, where they still exist.

    A file of the same size, dates and inode is not read. Others are compared byte by byte. Tokenizer and
    generation settings may change: `renewed` copies them.

    Raises:
        UserError: the source holds other weights or another config now, and earlier graphs and results would
            pass for its own.
    """
    source, origin = checkpoint.source, checkpoint.origin
    if _has_origin(checkpoint):
        changed, files = _changed_copies(origin, checkpoint.folder, source)
    elif source.kind == "gguf" and origin.is_file():
        changed, files = _changed_gguf(origin, source)
    else:
        return checkpoint
    if changed is not None:
        raise UserError(
            f"{changed} has changed since {checkpoint.folder} was made from it; "
            f"move {checkpoint.folder} away, or give the new model a new name"
        )
    if files == source.files:
        return checkpoint
    source = source.replaced(files=files)
    store.write_json(checkpoint.folder / store.SOURCE, source.plain())
    return replace(checkpoint, source=source)


def refuse_altered(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, its weights and config still those that were made of the original that is named.

    Who names the original means the original: a copy that was damaged or trained on since would be checked
    against itself. By its own name, such a copy is a model like any other.

    Raises:
        UserError: a file has other content, or was added.
    """
    folder, source, known = checkpoint.folder, checkpoint.source, checkpoint.source.copies
    is_file = source.kind != "hub" and source.origin not in demo.MODELS
    names = {file.file for file in known}
    added = (file for file in checkpoint.files if known and file.name not in names)
    if altered := store.weights.changed(known, folder) or next(added, None):
        raise UserError(
            f"{altered} is not what was made of {checkpoint.origin if is_file else source.origin}: it was "
            f"changed or damaged since; move {folder} away and run the command again, "
            f"or name {folder} to take it as it is"
        )
    return checkpoint


def outdated(checkpoint: Checkpoint) -> list[Path]:
    """Files of tokenizer and generation settings that are new or other in the folder of the original.

    One that was edited in the copy alone is not among them.
    """
    if not _has_origin(checkpoint):
        return []
    known = {file.file: file for file in checkpoint.source.files}
    filecmp.clear_cache()  # it goes by dates

    def is_outdated(name: str) -> bool:
        file, copy = checkpoint.origin / name, checkpoint.folder / name
        if not file.is_file() or not copy.is_file():
            return file.is_file()
        is_known = name in known and store.weights.is_same(known[name], file)
        return not is_known and not filecmp.cmp(file, copy, shallow=False)

    return [checkpoint.origin / name for name in SMALL_FILES if _is_renewable(name) and is_outdated(name)]


def is_source_other(checkpoint: Checkpoint) -> bool:
    """Whether the folder that a copy was made from holds other weights or another config now."""
    files = (file for file in checkpoint.source.files if not _is_renewable(file.file))
    return store.weights.changed(files, checkpoint.origin) is not None


def renewed(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint after a copy of what is `outdated` in it; the caller locks its folder."""
    files = outdated(checkpoint)
    if not files:
        return checkpoint
    log.info("%s: copied anew from its source: %s", checkpoint.folder, ", ".join(file.name for file in files))
    for file in files:
        copy_file(file, checkpoint.folder / file.name)
    states = {state.file: state for state in (*checkpoint.source.files, *store.weights.states(files))}
    known = tuple(states[file.name] for file in files_of(checkpoint.folder) if file.name in states)
    source = checkpoint.source.replaced(files=known)
    store.write_json(checkpoint.folder / store.SOURCE, source.plain())
    return replace(checkpoint, source=source)


def _has_origin(checkpoint: Checkpoint) -> bool:
    """Whether it was copied from a folder that is still there."""
    source = checkpoint.source
    is_copy = source.kind == "folder" and not is_in_place(checkpoint.folder, source)
    return is_copy and checkpoint.origin.is_dir()


def _changed_copies(
    origin: Path, folder: Path, source: CheckpointSource
) -> tuple[Path | None, tuple[FileState, ...]]:
    """The first file of weights or config in `origin` that is not its copy, and what its files are now.

    The weights in `origin` are those that it would be loaded with now: other files than were copied, perhaps.
    """
    known, now = {file.file: file for file in source.files}, dict[str, FileState]()
    filecmp.clear_cache()  # it goes by dates
    copies = files_of(folder)
    if newer := _other_weights(origin, copies):
        return newer, ()
    for copy in copies:
        file = origin / copy.name
        if not file.is_file():
            continue
        state = store.weights.state(file)
        if state == known.get(copy.name) or filecmp.cmp(file, copy, shallow=False):
            now[copy.name] = state
        elif not _is_renewable(copy.name):
            return file, ()
        elif copy.name in known:
            now[copy.name] = known[copy.name]  # `renewed` compares with it
    return None, tuple(now.values())


def _other_weights(origin: Path, copies: list[Path]) -> Path | None:
    """A file that `origin` would be loaded from now and that was not copied; None if a copied one lacks."""
    names = {copy.name for copy in copies if not _is_renewable(copy.name)}
    if not all((origin / name).is_file() for name in names):
        return None
    taken = [file for file in files_of(origin) if not _is_renewable(file.name)]
    return next((file for file in taken if file.name not in names), None)


def _is_renewable(name: str) -> bool:
    """Whether a file is of the tokenizer or of generation settings."""
    return name in SMALL_FILES and name != _CONFIG


def _changed_gguf(origin: Path, source: CheckpointSource) -> tuple[Path | None, tuple[FileState, ...]]:
    """The file of a GGUF, split or not, whose content has changed; and what its files are now."""
    if not source.files:  # a record of 0.2
        state = store.weights.state(origin, full=True)
        return (None if state.sha256 == source.file_sha256 else origin), (state,)
    states = []
    for known in source.files:
        file = origin.with_name(known.file)
        if not store.weights.is_same(known, file):
            return file, ()
        now = store.files.stamp(file)
        states.append(known.replaced(mtime_ns=now.mtime_ns, ctime_ns=now.ctime_ns, inode=now.inode))
    return None, tuple(states)
