"""`drop_attn_list` and `drop_mlp_list` of a config.json: how LLM-Drop marks the sublayers that it leaves out.

Its README writes indices; what it saves has one boolean a layer; its readers take both, mixed too
(CASE-Lab-UMD/LLM-Drop, `configuration_dropped_llama.py`). A sublayer goes with its norm there, as here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.config import Config
from pipeline.types import SkipSet, UserError, first_line

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint

ATTENTION, MLP = "drop_attn_list", "drop_mlp_list"


def of(checkpoint: Checkpoint) -> SkipSet:
    """What a checkpoint's config.json says is left out; `skip_set`'s errors."""
    return skip_set(checkpoint.config, checkpoint.folder / "config.json")


def skip_set(config: Config, file: Path) -> SkipSet:
    """What a config.json says is left out.

    Args:
        config: normalised.
        file: for messages.

    Raises:
        UserError: a list is none of layers of this model.
    """
    attention, mlp = (_layers(config, key, file) for key in (ATTENTION, MLP))
    return SkipSet(attention, mlp)


def _layers(config: Config, key: str, file: Path) -> tuple[int, ...]:
    """The layers of one list."""
    entries = config.get(key)
    if entries is None or entries is False:
        return ()
    count = config["num_hidden_layers"]
    if not isinstance(entries, list) or not all(isinstance(entry, int) for entry in entries):
        raise UserError(
            f"{file}: {key} is {first_line(repr(entries), 60)}, not a list of layers or of booleans"
        )
    layers = [
        i if isinstance(entry, bool) else entry for i, entry in enumerate(entries) if entry is not False
    ]
    if beyond := [layer for layer in layers if not 0 <= layer < count]:
        raise UserError(f"{file}: {key} names layer {beyond[0]}; the model has layers 0-{count - 1}")
    if entries and all(isinstance(entry, bool) for entry in entries) and len(entries) != count:
        raise UserError(f"{file}: {key} has {len(entries)} booleans for {count} layers")
    return tuple(layers)
