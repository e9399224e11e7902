"""A model's config.json alone, by any of the model's names: for what needs no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.models import demo, drop_lists, hub, hub_cache, origins
from pipeline.models.config import Config, normalised, read_config
from pipeline.models.gguf import names
from pipeline.store import records
from pipeline.types import SkipSet, UserError


@dataclass(frozen=True, slots=True)
class NamedConfig:
    """A model of which config.json is known.

    Attributes:
        name: the model's.
        config: normalised.
        file: that it was read from, for messages.
        folder: of the checkpoint; None where there is none here.
    """

    name: str
    config: Config
    file: Path
    folder: Path | None = None

    @property
    def dropped(self) -> SkipSet:
        """What config.json itself says is left out."""
        return drop_lists.skip_set(self.config, self.file)


def find(name: str) -> NamedConfig:
    """The config that `name` means; no weight is read, and nothing is copied into the project.

    Args:
        name: `demo`, `gemma`, a model under graphs/, a checkpoint's folder, a .gguf file, a config.json by
            any name that ends in .json, or an id of the hub, of which config.json alone is fetched.

    Raises:
        UserError: nothing has that name, or what has it holds no config that can be read.
    """
    path = Path(name)
    if name in demo.MODELS:
        present = origins.model_folder(demo.MODELS[name].folder)
        return _of_folder(present) if present else _of_gguf(demo.MODELS[name].folder, demo.gguf(name))
    if (present := origins.model_folder(name)) is not None:
        return _of_folder(present)
    if path.is_dir() and name:
        return _of_folder(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return _of_gguf(names.model_name(path), names.files(path)[0])
    if path.suffix == ".json":
        return _of_file(path)
    if path.is_file():
        raise UserError(f"{path} is no config; name a config.json, a checkpoint's folder or a .gguf file")
    if match := origins.HUB_ID.fullmatch(name):
        try:
            file = hub.config(name)
        except UserError as error:
            raise UserError(f"{error}; a config.json serves as well, by its path") from None
        return NamedConfig(match["name"], normalised(records.read_object(file), file), file)
    known = ", ".join([*demo.MODELS, *store.models()])
    raise UserError(
        f"no model {name!r:.200}: not a folder, not a config.json, no id of the form org/name, "
        f"and not one of {known}"
    )


def _of_folder(folder: Path) -> NamedConfig:
    return NamedConfig(hub_cache.name_of(folder), read_config(folder), folder / "config.json", folder)


def _of_file(file: Path) -> NamedConfig:
    """A config.json, which has its folder's name unless it has one of its own."""
    name = file.stem if file.name != "config.json" else hub_cache.name_of(file.parent)
    return NamedConfig(name, normalised(records.read_object(file), file), file)


def _of_gguf(name: str, file: Path) -> NamedConfig:
    from pipeline.models.gguf import convert, parts

    config = convert.original_config(parts.read(file))
    return NamedConfig(name, normalised(config, file), file)
