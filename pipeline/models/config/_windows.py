"""Which layers see a sliding window, from the keys that say it in one form or the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.types import UserError

FULL, SLIDING = "full_attention", "sliding_attention"


def in_effect(config: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> tuple[list[str], int | None]:
    """(the type of each layer's attention, the window), as transformers' class and model take them.

    Qwen's classes have `use_sliding_window`, and `layer_types` or `max_window_layers`. Others have one window
    for all layers, or none.

    Args:
        config: numbers checked, defaults filled in.
        own: the keys that the class has.
        file: for messages.

    Raises:
        UserError: `layer_types` is not one known type a layer, or contradicts the window.
    """
    layers, window, given = config["num_hidden_layers"], config["sliding_window"], config.get("layer_types")
    first = 0
    if "use_sliding_window" in own:
        window = window if config["use_sliding_window"] else None
        first = config["max_window_layers"]
    elif config.get("use_sliding_window") is False and window is not None:
        raise UserError(
            f"{file}: use_sliding_window is false and sliding_window is {window}, which transformers applies "
            f"to {config['model_type']}; set sliding_window to null, or remove use_sliding_window"
        )
    slides = "sliding_window" in own and window is not None
    kinds = [SLIDING if slides and i >= first else FULL for i in range(layers)]
    if given is None:
        return kinds, window
    if len(given) != layers or not set(given) <= {FULL, SLIDING}:
        odd = sorted(set(given) - {FULL, SLIDING})
        what = f"has {odd[0]!r:.40}" if odd else f"has {len(given)} entries for {layers} layers"
        raise UserError(f"{file}: layer_types {what}; it needs {FULL!r} or {SLIDING!r} for each layer")
    if given != kinds and not (slides and "layer_types" in own):
        raise UserError(
            f"{file}: layer_types contradicts the window that this model has, which is "
            f"{window if slides else 'none'}"
        )
    return list(given), window
