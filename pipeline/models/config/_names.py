"""Keys that an architecture's class names otherwise than the others do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.types import UserError


def ours(
    config: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """The config with the names that are used here.

    Args:
        config: as the file has it.
        names: the class's key → the key here.
        defaults: of the class, under the keys here.
        file: for messages.

    Raises:
        UserError: the file has both names and they differ, or ours alone, which the class does not read.
    """
    renamed = {key: value for key, value in config.items() if key not in names}
    for name, key in names.items():
        value = config.get(name, defaults[key])
        if renamed.get(key, value) != value:
            says = f"{name} is {value!r:.40}" + ("" if name in config else " where it is not given")
            raise UserError(
                f"{file}: {key} is {renamed[key]!r:.40}, but {config['model_type']} reads {name}; {says}"
            )
        if name in config:
            renamed[key] = value
    return renamed


def newer(config: Mapping[str, Any], older: Mapping[str, str], file: Path) -> dict[str, Any]:
    """The config with the names that a class has now.

    Args:
        config: as the file has it.
        older: key of an earlier release → the class's key now.
        file: for messages.

    Raises:
        UserError: the file has both names, and they differ.
    """
    renamed = {key: value for key, value in config.items() if key not in older}
    for name, key in older.items():
        if name in config and renamed.setdefault(key, config[name]) != config[name]:
            raise UserError(f"{file}: {name} is {config[name]!r:.40}, and {key} is {renamed[key]!r:.40}")
    return renamed


def theirs(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The config with the names that the class has.

    Args:
        config: with the names that are used here.
        names: the class's key → the key here.
    """
    own = {key: name for name, key in names.items()}
    return {own.get(key, key): value for key, value in config.items()}
