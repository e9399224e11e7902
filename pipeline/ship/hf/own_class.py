"""A checkpoint of the model's own class with fewer layers: its config.json, and its tensors' names.

Everything that transformers derives from a layer's index is said in so many words, so that a layer which is
kept keeps its window and its rope.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.models import config as configs
from pipeline.models.config import Config
from pipeline.models.sizes import SizeRules
from pipeline.ship.hf import engines
from pipeline.ship.outline import Outline

_DROPPED = ("drop_attn_list", "drop_mlp_list", "transformers_weights", "per_layer_config")
"""What would leave layers out once more, or names files that are called otherwise here."""
_COUNT = "num_hidden_layers"
_ROPE = {"rope_theta", "partial_rotary_factor", "rope_scaling", "rope_local_base_freq"}
"""transformers 4's keys."""


def config(variant: Outline, given: Config) -> dict[str, Any]:
    """config.json of the layers that are left.

    Args:
        variant: that leaves whole layers out.
        given: config.json of the whole model, as the file has it.
    """
    whole, kept = variant.config, variant.kept_layers
    model_type = whole["model_type"]
    own = configs.defaults(model_type)
    fewer = {key: value for key, value in given.items() if key not in _DROPPED}
    if model_type != "qwen":
        fewer.pop("auto_map", None)  # stock classes serve, and the files that it names do not come along
    fewer[_count_key(given, model_type)] = len(kept)
    for key in ("layer_types", "no_rope_layers"):
        if key in own:
            fewer[key] = [whole[key][i] for i in kept]
        elif isinstance(given.get(key), list):
            fewer[key] = [given[key][i] for i in kept]
    if "max_window_layers" in own:
        fewer["max_window_layers"] = sum(i < whole["max_window_layers"] for i in kept)
    _say_pattern(fewer, engines.pattern(variant))
    return {**fewer, **_older_rope(whole, given)}


def renamed(name: str, kept: Sequence[int], rules: SizeRules) -> str:
    """The name of a tensor once the layers are counted anew.

    Args:
        name: of a tensor of a layer that is kept, or of none.
        kept: their indices in the whole model.
        rules: of the architecture.
    """
    match = re.match(rf"{re.escape(rules.layers)}\.(\d+)\.", name)
    if match is None:
        return name
    return f"{rules.layers}.{kept.index(int(match[1]))}.{name[match.end() :]}"


def _count_key(given: Config, model_type: str) -> str:
    """What the file calls the number of layers."""
    older = (old for old, key in configs.older(model_type).items() if key == _COUNT)
    return next((key for key in older if key in given), _COUNT)


def _say_pattern(fewer: dict[str, Any], every: int | None) -> None:
    """Gemma's two names for the pattern say what `layer_types` says, or nothing."""
    if not fewer["model_type"].startswith("gemma"):
        return
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        if key in fewer and every is None:
            del fewer[key]
        elif key in fewer or (key == "sliding_window_pattern" and fewer["model_type"] == "gemma3_text"):
            fewer[key] = every


def _older_rope(whole: Config, given: Config) -> dict[str, Any]:
    """The keys of transformers 4 beside version 5's, which version 4 passes over for a default."""
    if not given.get("rope_parameters"):
        return {}
    theirs = configs.for_transformers(whole)
    names = {name for name, key in configs.names(whole["model_type"]).items() if key in _ROPE} | _ROPE
    return {key: theirs[key] for key in sorted(names) if key in theirs and key not in given}
