"""config.json of a checkpoint: the one place that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.store import records

Config = Mapping[str, Any]
"""config.json of a checkpoint. Its keys are transformers' and differ from architecture to architecture."""
_CONFIG: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def read_config(folder: Path, name: str = "config.json") -> Config:
    """config.json of the checkpoint in a folder, or its generation_config.json.

    Raises:
        UserError: it is missing, or not a JSON object.
    """
    return records.read(_CONFIG, folder / name)
