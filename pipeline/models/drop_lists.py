"""What a config.json says is left out of its model, in the forms that other tools write.

- `drop_attn_list` and `drop_mlp_list`: LLM-Drop's. Its README writes indices; what it saves has one boolean a
  layer; its readers take both, mixed too (CASE-Lab-UMD/LLM-Drop, `configuration_dropped_llama.py`).
- `per_layer_config` with `skip`: transformers' (`integrations/heterogeneity/configuration_utils.py`).
- `block_configs` with `no_op`: NVIDIA's nemotron-nas, which `models/config` has made lists of.

A sublayer goes with its norm there, as here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.config import Config
from pipeline.types import SkipSet, UserError, first_line

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint

ATTENTION, MLP, LAYERS = "drop_attn_list", "drop_mlp_list", "per_layer_config"
_SKIPPED = ("attention", "mlp")
"""transformers' names of what a layer skips."""


def of(checkpoint: Checkpoint) -> SkipSet:
    """What a checkpoint's config.json says is left out; `skip_set`'s errors."""
    return skip_set(checkpoint.config, checkpoint.folder / "config.json")


def skip_set(config: Config, file: Path) -> SkipSet:
    """What a config.json says is left out.

    Args:
        config: normalised.
        file: for messages.

    Raises:
        UserError: a list is none of layers of this model, layers differ in more than what they skip, or two
            forms contradict each other.
    """
    attention, mlp = (_layers(config, key, file) for key in (ATTENTION, MLP))
    lists = SkipSet(attention, mlp)
    if config.get(LAYERS) is None:
        return lists
    skips = _of_layers(config[LAYERS], _num_layers(config, file), f"{file}: {LAYERS}")
    if any(config.get(key) is not None for key in (ATTENTION, MLP)) and skips != lists:
        raise UserError(
            f"{file}: {LAYERS} leaves out {_words(skips)}, and what stands beside it {_words(lists)}; "
            "remove the wrong one"
        )
    return skips


def _num_layers(config: Config, file: Path) -> int:
    """How many layers the lists are of."""
    count = config.get("num_hidden_layers")
    if type(count) is not int:
        raise UserError(f"{file} does not say num_hidden_layers; copy it from the model's own config.json")
    return count


def _words(skip: SkipSet) -> str:
    return skip.name if skip else "nothing"


def _of_layers(layers: Any, count: int, place: str) -> SkipSet:
    """What transformers' `per_layer_config` skips; it may say nothing else."""
    if not isinstance(layers, dict):
        raise UserError(f"{place} is {first_line(repr(layers), 60)}, not an object of layers")
    skipped: dict[int, list[str]] = {}
    for key, values in layers.items():
        if not re.fullmatch(r"\d{1,6}", key) or int(key) >= count or int(key) in skipped:
            raise UserError(f"{place} has {key!r:.40}; the model has layers 0-{count - 1}, each once")
        names = values.get("skip", []) if isinstance(values, dict) else None
        if not isinstance(names, list) or set(values) - {"skip"} or not all(one in _SKIPPED for one in names):
            raise UserError(
                f"{place}[{key}] is {first_line(repr(values), 80)}; only `skip` with "
                f"{' and '.join(_SKIPPED)} is authored here"
            )
        skipped[int(key)] = names
    attention, mlp = (tuple(i for i, names in skipped.items() if one in names) for one in _SKIPPED)
    return SkipSet(attention, mlp)


def _layers(config: Config, key: str, file: Path) -> tuple[int, ...]:
    """The layers of one list."""
    entries = config.get(key)
    if entries is None or entries is False:
        return ()
    count = _num_layers(config, file)
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
