"""config.json of a checkpoint: the one place that reads it, and says what its keys mean.

What is read is normalised: the forms that transformers 4 and 5 write are one, a key that is missing has the
value that transformers' configuration class of that model_type gives it, and a number that no model has is
refused. One model_type a file, named by it, with

- `DEFAULTS`: the keys that our code understands, and their values in transformers' class;
- `FIXED`: keys that the class ignores or that are not authored, and the one value that they may have;
- `NAMES`, where it has them: the class's key → the key here, of what other classes call so;
- `DERIVED`, where it has them: sizes of heads that follow from others, and may only say the same;
- `OLDER`, where there are some: names that earlier releases had for the class's keys;
- `context`, where fewer tokens than `max_position_embeddings` are authored: a function that gives them.

A model_type without a file keeps its own keys; only its sizes are looked at.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.models.config import _block_configs, _foreign, _names, _numbers, _rope, _ropeless, _windows
from pipeline.store import records
from pipeline.types import UserError

Config = Mapping[str, Any]
"""config.json of a checkpoint. Its keys are transformers' and differ from architecture to architecture."""
FULL, SLIDING = _windows.FULL, _windows.SLIDING
"""transformers' words for a layer that sees everything, and for one with a window."""
_KEPT_HERE = {
    "auto_map", "quantization_config", "drop_attn_list", "drop_mlp_list", "per_layer_config",
    "skip_pipeline",
    "dtype", "torch_dtype", "attn_implementation",
}  # fmt: skip
"""Keys that transformers is not given: the code that runs and its precision are not the file's to choose."""


def read_config(folder: Path) -> Config:
    """config.json of the checkpoint in a folder, normalised.

    Raises:
        UserError: it is missing, not a JSON object, or says what no model has; names the key.
    """
    file = folder / "config.json"
    return normalised(records.read_object(file), file)


def read_generation_config(folder: Path) -> Config:
    """generation_config.json of the checkpoint in a folder, as it is; empty where there is none.

    Raises:
        UserError: it is not a JSON object.
    """
    file = folder / "generation_config.json"
    return records.read_object(file) if records.is_there(file) else {}


def is_known(model_type: object) -> bool:
    """Whether the keys of an architecture are known here."""
    return isinstance(model_type, str) and model_type in known()


def known() -> list[str]:
    """The model_types whose keys are known here."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def defaults(model_type: str) -> Config:
    """Key → its value in transformers' configuration class, of the keys that are understood."""
    values: Config = importlib.import_module(f"{__name__}.{model_type}").DEFAULTS
    return values


def fixed(model_type: str) -> Config:
    """Key → the one value that it may have in a graph that is authored here."""
    values: Config = importlib.import_module(f"{__name__}.{model_type}").FIXED
    return values


def names(model_type: str) -> Mapping[str, str]:
    """Key of transformers' class → key here, of those that the class names otherwise than the others do."""
    table: Mapping[str, str] = getattr(importlib.import_module(f"{__name__}.{model_type}"), "NAMES", {})
    return table


def older(model_type: str) -> Mapping[str, str]:
    """Key of an earlier release → the class's key now."""
    table: Mapping[str, str] = getattr(importlib.import_module(f"{__name__}.{model_type}"), "OLDER", {})
    return table


def derived(model_type: str) -> Collection[str]:
    """Keys of the heads' sizes that the class derives from others."""
    keys: Collection[str] = getattr(importlib.import_module(f"{__name__}.{model_type}"), "DERIVED", ())
    return keys


def normalised(config: Config, file: Path) -> Config:
    """A config.json with one form and no key missing.

    Args:
        config: as the file has it.
        file: for messages.

    Returns:
        transformers 4's keys; a `nemotron-nas` is a `llama` with drop lists. Of a known model_type,
        `head_dim`, `num_key_value_heads`, `layer_types`, `no_rope_layers` and `sliding_window` are those in
        effect; `rope_scaling` is None or has `rope_type` and its numbers.

    Raises:
        UserError: a value is of another type, no model has it, or two contradict each other.
    """
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise UserError(f"{file}: model_type is {model_type!r:.60}, not a name")
    if model_type == _block_configs.MODEL_TYPE:
        config, model_type = _block_configs.as_llama(config, file), "llama"
    if not is_known(model_type):
        _numbers.refuse_odd_sizes(config, file)
        return config
    assert isinstance(model_type, str)
    own = defaults(model_type)
    module = importlib.import_module(f"{__name__}.{model_type}")
    newer = _names.newer(config, older(model_type), file)
    renamed = _names.ours(newer, names(model_type), own, file)
    whole = {**fixed(model_type), **own, **_rope.one_form(renamed, file)}
    whole = _numbers.checked(whole, file, derived(model_type))
    if shorter := getattr(module, "context", None):
        whole["max_position_embeddings"] = shorter(whole)
    if "no_rope_layers" in own:
        whole["no_rope_layers"] = _ropeless.in_effect(whole, file)
    whole["layer_types"], whole["sliding_window"] = _windows.in_effect(whole, own, file)
    _rope.refuse_odd(whole, file)
    return whole


def refuse_foreign(config: Config, file: Path) -> None:
    """Refuses, or names, the keys that a graph which is authored here would leave out of account.

    Args:
        config: normalised, of a known model_type.
        file: for messages.

    Raises:
        UserError: one of them changes what the model computes.
    """
    _foreign.refuse(config, defaults(config["model_type"]), fixed(config["model_type"]), file)


def for_transformers(config: Config) -> dict[str, Any]:
    """The keys that transformers' class is made from: they mean the same to its versions 4 and 5.

    Args:
        config: normalised.
    """
    model_type, dropped = config["model_type"], set(_KEPT_HERE)
    if is_known(model_type):  # what its class has not, and what says the same once more
        dropped |= {*fixed(model_type), "layer_types"} - set(defaults(model_type))
    given = {k: v for k, v in config.items() if k not in dropped and not k.startswith("_")}
    if is_known(model_type) and (scaling := config["rope_scaling"]):
        # Version 4's classes of Phi-3 and OLMo 2 know no other name for the type, and Gemma 3's not this one.
        name = "type" if model_type in ("phi3", "olmo2") else "rope_type"
        numbers = {k: v for k, v in scaling.items() if k != "rope_type"}
        if isinstance(numbers.get("factor"), int):
            numbers["factor"] = float(numbers["factor"])  # OLMo 2's refuses 4 for 4.0
        given["rope_scaling"] = {name: scaling["rope_type"], **numbers}
    return _names.theirs(given, names(model_type)) if is_known(model_type) else given


def older_form(config: Config, file: Path) -> Config:
    """The config with transformers 4's keys for the rope, of an architecture that is not known here.

    Raises:
        UserError: its layers differ in their rope, which version 4 cannot say.
    """
    return _rope.one_form(config, file)
