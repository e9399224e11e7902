"""Which layers have no rotary embedding, from the two keys that say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.types import UserError


def in_effect(config: Mapping[str, Any], file: Path) -> list[int]:
    """`no_rope_layers` as transformers' class has it: 1 for a layer with rope, 0 for one without.

    Args:
        config: numbers checked, defaults filled in.
        file: for messages.

    Raises:
        UserError: the list does not reach the last layer.
    """
    layers, given = config["num_hidden_layers"], config["no_rope_layers"]
    if given is None:
        every = config["no_rope_layer_interval"]
        return [int((i + 1) % every != 0) for i in range(layers)]
    if len(given) < layers:
        raise UserError(
            f"{file}: no_rope_layers has {len(given)} entries for {layers} layers; it needs 1 (with rope) or "
            "0 (without) for each layer, or null"
        )
    return list(given)
