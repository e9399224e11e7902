"""Where a model came from, and whether two origins are one: graphs/<model> holds one model alone."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline import store
from pipeline.models import demo, hub_cache, identity, weight_files
from pipeline.models.gguf import names
from pipeline.store.records import CheckpointSource
from pipeline.types import UserError

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/(?P<name>\w[\w.-]*))(@(?P<revision>\w[\w./-]*))?")
"""org/name, or org/name@revision of the Hugging Face hub."""


def model_folder(name: str) -> Path | None:
    """graphs/<name> of the current directory, where a complete checkpoint lies there."""
    try:
        folder = store.Project().graphs(name)
    except UserError:  # a path or an id of the hub is no folder's name
        return None
    return folder if (folder / store.SOURCE).is_file() else None


def is_a_projects(folder: Path) -> bool:
    """Whether a folder is that of a model, under the graphs/ of this project or of another."""
    graphs = folder.resolve().parent
    return graphs == Path("graphs").resolve() or (
        graphs.name == "graphs" and (folder / store.SOURCE).is_file()
    )


def model_name(folder: Path) -> str:
    """The name that a user's folder gives to its model.

    Raises:
        UserError: it gives none that files can have.
    """
    try:
        return store.plain_name(folder.resolve().name)
    except UserError as error:
        raise UserError(f"{folder}: {error}; rename the folder of the model") from None


def refuse_double(folder: Path) -> None:
    """Refuses a built-in model's name where a user's checkpoint has it too.

    Raises:
        UserError: one lies in a folder of that name, here or under graphs/.
    """
    if (folder / "config.json").is_file() or model_folder(folder.name):
        raise UserError(
            f"{folder} is a built-in model and a folder of yours; name that one by its path "
            f"(./{folder}, graphs/{folder}), or rename it to have the built-in one"
        )


def hub_source(name: str) -> CheckpointSource | None:
    """What a hub's id means, with its commit where the cache knows it; None where a name is no such id."""
    match = HUB_ID.fullmatch(name)
    if match is None:
        return None
    snapshot = hub_cache.find(match["repo"], match["revision"] or "main")
    return CheckpointSource(kind="hub", origin=name, revision=snapshot.revision if snapshot else None)


def matching(present: CheckpointSource, wanted: CheckpointSource, folder: Path) -> CheckpointSource:
    """The record of the model in a folder, which is the wanted one.

    Args:
        present: its source.json.
        wanted: what was asked for.
        folder: graphs/<model>.

    Raises:
        UserError: it is another model of the same name.
    """
    if present.origin == wanted.origin or _place(present, folder) == _place(wanted, folder):
        return present
    if present.kind == wanted.kind == "hub" and repository(present)[0] == repository(wanted)[0]:
        if present.revision is not None and present.revision == wanted.revision:
            return present
    elif present.kind == wanted.kind == "folder" and _is_same_content(folder, wanted):
        return present.replaced(origin=wanted.origin, files=())  # what lies there is compared anew
    if wanted.kind == "hub":
        commit = f" ({wanted.revision})" if wanted.revision and wanted.revision not in wanted.origin else ""
        advice = f"to have {wanted.origin}{commit}, move it away"
    else:
        advice = f"move it away, or rename {_place(wanted, folder)}"
    raise UserError(f"{folder} already holds a model from {_place(present, folder)}; {advice}")


def _place(source: CheckpointSource, folder: Path) -> str:
    """An origin as a user writes it: the path of a folder or a file, whatever it is relative to."""
    if source.kind in ("folder", "gguf") and source.origin not in demo.MODELS:
        return str(store.resolved(source.origin, folder / store.SOURCE).resolve())
    return source.origin


def repository(source: CheckpointSource) -> tuple[str, str]:
    """(org/name, its commit) of a model from the hub."""
    return source.origin.partition("@")[0], source.revision or "main"


def _is_same_content(folder: Path, wanted: CheckpointSource) -> bool:
    """Whether a folder elsewhere has the weights, the config and the tokenizer of a copy."""
    other = store.resolved(wanted.origin, folder / store.SOURCE)

    def content(place: Path) -> tuple[str | None, ...]:
        weights = store.weights.identity(store.weights.states(weight_files.weight_files(place)))
        return weights, store.sha256(place / "config.json"), identity.tokenizer_digest(place)

    return content(folder) == content(other)


def folder_name(name: str) -> str:
    """The folder under graphs/ that a model's name means: org/name lies under name, `demo` under its own."""
    if name in demo.MODELS:
        return demo.MODELS[name].folder
    path = Path(name)
    if path.is_dir():
        return hub_cache.name_of(path)
    if path.suffix == ".gguf":
        return names.model_name(path)
    match = HUB_ID.fullmatch(name)
    return match["name"] if match else path.name
