"""A model by any of its names → a checkpoint: config, tokenizer and safetensors, plain files in one folder.

Names: `demo`, `gemma`, a model under graphs/, a local Hugging Face folder, a .gguf file, a Hugging Face id.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from pipeline import store
from pipeline.models import (
    checkpoint_files,
    demo,
    hub,
    hub_cache,
    identity,
    origins,
    safetensors_index,
    tensor_names,
    tensor_use,
    unusable,
)
from pipeline.models.config import Config, is_known, read_config
from pipeline.models.gguf import names
from pipeline.models.sizes import rules_of
from pipeline.models.weight_files import WeightFiles, find
from pipeline.store import records
from pipeline.store.records import CheckpointSource
from pipeline.types import TensorSlice, UserError

log = logging.getLogger(__name__)
GGUF_CONVERTER = 4
"""Version of what `gguf.convert` writes; raise it with every change. Older conversions are made again."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that lies complete in its folder; graphs are written beside it.

    Attributes:
        folder: graphs/<model>, or the user's own folder with `--in-place`.
        config: config.json.
        source: where it came from (source.json).
    """

    folder: Path
    config: Config
    source: CheckpointSource

    @property
    def model(self) -> str:
        """Its name: that of its folder; of a snapshot in the hub's cache, that of its repository."""
        return hub_cache.name_of(self.folder)

    @property
    def project(self) -> store.Project:
        """The project that its folder belongs to."""
        return project_of(self.folder)

    @property
    def calib(self) -> Path:
        """calib/<model> of its project: what is learned of it from text."""
        return self.project.calib(self.model)

    @property
    def origin(self) -> Path:
        """The folder or the file that it was made from, of a source of that kind."""
        return store.resolved(self.source.origin, self.folder / store.SOURCE)

    @cached_property
    def weights(self) -> WeightFiles:
        """Which of the folder's files hold its weights."""
        return find(self.folder)

    @property
    def files(self) -> list[Path]:
        """Its safetensors files."""
        return list(self.weights.files)

    @cached_property
    def tensors(self) -> dict[str, TensorSlice]:
        """Tensor name, as transformers' causal model has it, → where it lies."""
        tensors = safetensors_index.read_index(self.files, self.weights.named)
        if not is_known(model_type := self.config.get("model_type")):
            return tensors
        return tensor_names.canonical(tensors, self.folder, rules_of(model_type))

    @cached_property
    def identity(self) -> str:
        """What it is: a digest of its weights' content, cheap at any size (`store.weights.identity`)."""
        if self.source.kind == "onnx":  # its weights lie inside the graph; exports of 0.2 have no digest
            return self.source.weights or self.source.origin
        return store.weights.identity(store.weights.states(self.files))

    @cached_property
    def contents(self) -> str:
        """SHA-256 over every byte of its weights, for stages that read them all; taken once a content."""
        if self.source.kind == "onnx":  # its identity is of every byte
            return store.text_digest(self.identity)
        return store.weights.contents(self.files)


Proof = Callable[[Checkpoint], object]
"""Refuses, with a UserError, what cannot be used: asked of a checkpoint before it is copied."""
_Prove = Callable[[Path], Checkpoint]


def project_of(folder: Path) -> store.Project:
    """The project that a checkpoint's folder belongs to."""
    return store.Project.of(folder / "config.json")


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, the headers of its weights checked.

    Raises:
        UserError: a file is missing or truncated, or a header contradicts its file.
    """
    unusable.refuse_adapter(folder)
    path = folder / store.SOURCE
    if path.is_file():
        source = records.read(CheckpointSource, path)
    else:
        source = CheckpointSource(kind="folder", origin=str(folder))
    checkpoint = Checkpoint(folder, read_config(folder), source)
    if source.kind != "onnx":  # the weights of such an export lie inside its graph
        _ = checkpoint.tensors
    return checkpoint


def _open_usable(folder: Path, proof: Proof | None = None) -> Checkpoint:
    """As `open_checkpoint`, of one that comes in: what no graph can be made of is refused before a copy."""
    unusable.refuse_other_kinds(folder)
    checkpoint = open_checkpoint(folder)
    tensor_use.refuse_quantised(checkpoint)
    if proof:
        proof(checkpoint)
    return checkpoint


def resolve(name: str, in_place: bool = False, proof: Proof | None = None) -> Checkpoint:
    """The checkpoint that `name` means.

    One that lies elsewhere is brought into graphs/<model>/ of the current directory. A model's folder under
    the graphs/ of another project is opened where it is.

    Args:
        name: `demo`, `gemma`, a model's name, a folder, a .gguf file, or an id of the hub.
        in_place: open a folder where it is.
        proof: asked before a local checkpoint is copied, and once a GGUF was converted. A download is not
            proved: what was fetched stays.

    Raises:
        UserError: nothing has that name, or what has it cannot be used; names what the user gave and what
            would help. graphs/ is as it was before.
    """
    path, prove = Path(name), partial(_open_usable, proof=proof)
    if name in demo.MODELS:
        origins.refuse_double(path)
        return _bring_gguf(demo.MODELS[name].folder, demo.gguf(name), prove, name)
    if (folder := origins.model_folder(name)) is not None:
        return _open_present(folder, path, in_place, prove)
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return _bring_gguf(names.model_name(path), path, prove)
    if name and path.is_dir():
        return _open_folder(path, in_place, prove)
    if path.is_file():
        raise UserError(f"{path} is a file; name the folder that holds it, or a .gguf file")
    if source := origins.hub_source(name):
        return _bring(origins.folder_name(name), source, lambda target: hub.download(name, target, prove))
    known = ", ".join([*demo.MODELS, *store.models()])
    raise UserError(
        f"no model {name!r}: not a folder, not a .gguf file, no id of the form org/name, "
        f"and not one of {known}"
    )


def _open_present(folder: Path, path: Path, in_place: bool, prove: _Prove) -> Checkpoint:
    """A model under graphs/ by its name, which may be that of a folder in the current directory too."""
    checkpoint = open_checkpoint(folder)
    if (path / "config.json").is_file():
        if in_place or checkpoint.origin.resolve() == path.resolve():
            return _open_folder(path, in_place, prove)
        raise UserError(f"{path} is both {folder} and a folder here; name it {folder} or .{os.sep}{path}")
    return _renewed(checkpoint)


def _renewed(checkpoint: Checkpoint) -> Checkpoint:
    """A project's own checkpoint, with the tokenizer and the settings that its original has now."""
    if not identity.outdated(checkpoint) or identity.is_source_other(checkpoint):
        return checkpoint  # what was copied can still be used by its own name
    with store.lock(checkpoint.folder, make=False):
        return identity.renewed(checkpoint)


def _open_folder(path: Path, in_place: bool, prove: _Prove) -> Checkpoint:
    """A checkpoint in a folder: a project's own, a user's where it is, or a copy of it."""
    if origins.is_a_projects(path):
        return _renewed(open_checkpoint(path))
    if snapshot := hub_cache.snapshot_at(path):
        if in_place:
            raise UserError(f"{path} is in the hub's cache, which is not written to; leave --in-place out")
        source = CheckpointSource(kind="hub", origin=snapshot.origin, revision=snapshot.revision)
        return _bring(snapshot.name, source, lambda target: hub.copy(snapshot, target, prove))
    unusable.refuse_other_kinds(path)
    if word := find(path).word():
        log.info("%s", word)
    if not in_place:
        return _bring_folder(path, prove)
    origins.model_name(path)  # by which its results are kept
    checkpoint = _open_usable(path)
    if link := next((file for file in checkpoint.files if file.is_symlink()), None):
        raise UserError(f"{link} is a link, which ONNX Runtime does not follow; leave --in-place out")
    return checkpoint


def _bring_folder(path: Path, prove: _Prove) -> Checkpoint:
    model = origins.model_name(path)
    record = store.Project().graphs(model) / store.SOURCE
    source = CheckpointSource(kind="folder", origin=store.relative(path, to=record))

    def copy(target: Path) -> CheckpointSource:
        prove(path)
        files = identity.states(path)
        checkpoint_files.copy(path, target, "or write the graphs beside the weights with --in-place")
        if changed := store.weights.changed(files, path):
            raise UserError(f"{changed} was written to while it was copied; run the command again")
        return source.replaced(files=files)

    return _bring(model, source, copy)


def _bring_gguf(model: str, file: Path, prove: _Prove, name: str | None = None) -> Checkpoint:
    """Converts a GGUF file, which may have a shorter name than its path; of a split one any part is given."""
    file, *others = names.files(file)
    record = store.Project().graphs(model) / store.SOURCE
    origin = name or store.relative(file, to=record)
    source = CheckpointSource(kind="gguf", origin=origin, file=file.name, converter=GGUF_CONVERTER)

    def convert(target: Path) -> CheckpointSource:
        from pipeline.models.gguf.convert import convert as write

        if name and (terms := demo.MODELS[name].terms):
            log.warning("%s", terms)
        states = store.weights.states([file, *others], full=True)
        write(file, target)
        if changed := store.weights.changed(states, file.parent):
            raise UserError(f"{changed} was written to while it was read; run the command again")
        try:
            prove(target)
        except UserError as error:  # of a folder that goes again: the user knows the GGUF alone
            words = str(error).replace(f"{target}{os.sep}", f"{file}: ").replace(str(target), str(file))
            raise UserError(words) from None
        return source.replaced(file_sha256=states[0].sha256, files=states)

    return _bring(model, source, convert)


def _bring(model: str, source: CheckpointSource, fill: Callable[[Path], CheckpointSource]) -> Checkpoint:
    """Fills graphs/<model>/ under a lock; source.json, written last, says that the folder is complete."""
    folder = store.Project().graphs(model)
    record = folder / store.SOURCE
    with store.lock(folder, make=False):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if record.is_file():
                present = origins.matching(records.read(CheckpointSource, record), source, folder)
                if present.converter == source.converter:
                    known = identity.refuse_altered(replace(open_checkpoint(folder), source=present))
                    return identity.renewed(identity.refuse_changed(known))
            store.sweep_temporaries(folder)
            complete = fill(folder).replaced(copies=identity.copies(folder))
            checkpoint = _open_usable(folder)
            store.write_json(record, complete.plain())
            return replace(checkpoint, source=complete)
        except BaseException:
            # Nothing is left of a folder that this call made. A download that has begun stays: it is resumed.
            if is_new and not (folder / hub_cache.DOWNLOADS).is_dir():
                shutil.rmtree(folder)
            raise
