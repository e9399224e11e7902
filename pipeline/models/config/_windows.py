"""Which layers see a sliding window, from the keys that say it in one form or the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.types import UserError

FULL, SLIDING = "full_attention", "sliding_attention"
_PATTERNS = {"gemma2": 2, "gemma3_text": 6}
"""model_type → n: where a config says nothing else, every n-th layer sees everything and the others slide."""


def in_effect(config: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> tuple[list[str], int | None]:
    """(the type of each layer's attention, the window), as transformers' class and model take them.

    Qwen's and SmolLM3's classes have `use_sliding_window`, and `layer_types` or a rule of their own. Gemma's
    have `layer_types` or a pattern. Others have one window for all layers, or none.

    Args:
        config: numbers checked, defaults filled in.
        own: the keys that the class has.
        file: for messages.

    Raises:
        UserError: `layer_types` is not one known type a layer, or contradicts the window.
    """
    layers, window, given = config["num_hidden_layers"], config["sliding_window"], config.get("layer_types")
    if given is not None:
        _refuse_odd(given, layers, file)
    if "use_sliding_window" in own:
        window = window if config["use_sliding_window"] else None
    elif config.get("use_sliding_window") is False and window is not None:
        raise UserError(
            f"{file}: use_sliding_window is false and sliding_window is {window}, which transformers applies "
            f"to {config['model_type']}; set sliding_window to null, or remove use_sliding_window"
        )
    if config["model_type"] in _PATTERNS:
        return _alternating(config, own, file), window
    slides = "sliding_window" in own and window is not None
    kinds = [SLIDING if slides and _may_slide(config, own, i) else FULL for i in range(layers)]
    if given is None:
        return kinds, window
    if given != kinds and not (slides and "layer_types" in own):
        raise UserError(
            f"{file}: layer_types contradicts the window that this model has, which is "
            f"{window if slides else 'none'}"
        )
    return list(given), window


def _may_slide(config: Mapping[str, Any], own: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has the window where `layer_types` does not say it."""
    if "no_rope_layers" in own:
        return not config["no_rope_layers"][layer]
    return "max_window_layers" not in own or layer >= config["max_window_layers"]


def _alternating(config: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> list[str]:
    """The types of layers that alternate, of `layer_types` or of a pattern."""
    given = config["sliding_window_pattern"] if "sliding_window_pattern" in own else None
    every = given or _PATTERNS[config["model_type"]]
    by_pattern = [SLIDING if (i + 1) % every else FULL for i in range(config["num_hidden_layers"])]
    kinds: list[str] = config.get("layer_types") or by_pattern
    if config["sliding_window"] is None and SLIDING in kinds:
        raise UserError(f"{file}: sliding_window is null, but layer {kinds.index(SLIDING)} has a window")
    return list(kinds)


def _refuse_odd(kinds: list[str], layers: int, file: Path) -> None:
    """Refuses layer types of which there is not one known one a layer."""
    if len(kinds) != layers or not set(kinds) <= {FULL, SLIDING}:
        odd = sorted(set(kinds) - {FULL, SLIDING})
        what = f"has {odd[0]!r:.40}" if odd else f"has {len(kinds)} entries for {layers} layers"
        raise UserError(f"{file}: layer_types {what}; it needs {FULL!r} or {SLIDING!r} for each layer")
