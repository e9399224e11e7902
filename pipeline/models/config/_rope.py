"""Rope in one form, of the two that transformers writes, and no number in it that cannot be.

Version 4 has `rope_theta` and `rope_scaling`; version 5 has `rope_parameters`, maybe one a layer type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.types import UserError

OUTER = ("rope_theta", "partial_rotary_factor")
"""What version 5 keeps inside, and version 4 beside."""
_ORIGINAL = "original_max_position_embeddings"
NUMBERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), (_ORIGINAL,)),
    "yarn": (
        ("factor",),
        (_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("short_factor", "long_factor"), (_ORIGINAL, "factor", "attention_factor")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), ()),
}
"""Type of rope → its keys (needed, possible)."""
_HARMLESS = {"finetuned"}
_TWO_ROPES, _LOCAL = ("gemma3_text",), "rope_local_base_freq"
_PHI3_NAMES = {"su": "longrope", "yarn": "longrope"}


def one_form(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The config with version 4's keys, `rope_scaling` None or with `rope_type`.

    Args:
        config: as the file has it.
        file: for messages.

    Raises:
        UserError: the two forms contradict each other, or layers differ in their rope.
    """
    if config.get("model_type") in _TWO_ROPES:
        config = _without_local(config, file)
    inner, key = _parameters(config, file)
    if inner is None:
        return dict(config)
    inner = _of_all_layers(inner, f"{file}: {key}")
    single = {name: value for name, value in config.items() if name != "rope_parameters"}
    for name in OUTER:
        if name in inner:
            value = inner.pop(name)
            if name in config and config[name] != value:
                raise UserError(f"{file}: {name} is {config[name]!r:.40}, and {value!r:.40} in {key}")
            single[name] = value
    kinds = {inner.pop(name) for name in ("rope_type", "type") if isinstance(inner.get(name), str)}
    if config.get("model_type") == "phi3":
        kinds = {_PHI3_NAMES.get(kind, kind) for kind in kinds}
    if len(kinds) > 1:
        raise UserError(f"{file}: {key} has type and rope_type, which differ: {', '.join(sorted(kinds))}")
    kind = next(iter(kinds), "default" if not inner else None)
    single["rope_scaling"] = None if kind == "default" and not inner else {"rope_type": kind, **inner}
    if config.get("model_type") == "phi3":
        _use_outer_context(single, file, key)
    return single


def _parameters(config: Mapping[str, Any], file: Path) -> tuple[dict[str, Any] | None, str]:
    """(the dict that describes the rope, its key); version 5 takes `rope_scaling` before its own name."""
    forms = {key: config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key) is not None}
    for key, value in forms.items():
        if not isinstance(value, dict):
            raise UserError(f"{file}: {key} is {value!r:.60}, not an object")
    if len(forms) == 2 and _bare(forms["rope_scaling"]) != _bare(forms["rope_parameters"]):
        raise UserError(f"{file}: rope_scaling and rope_parameters contradict each other; remove one")
    key = "rope_parameters" if "rope_parameters" in forms else "rope_scaling"
    return (dict(forms[key]) if forms else None), key


def _bare(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the two forms have in common."""
    bare = {key: value for key, value in parameters.items() if key not in (*OUTER, "type", "rope_type")}
    return {**bare, "rope_type": parameters.get("rope_type", parameters.get("type", "default"))}


def _is_nested(parameters: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in parameters.values())


def _of_all_layers(parameters: dict[str, Any], place: str) -> dict[str, Any]:
    """One dict for all layers, of one a type of layer."""
    if not _is_nested(parameters):
        return parameters
    each = list(parameters.values())
    if any(one != each[0] for one in each):
        raise UserError(f"{place} differs from layer to layer, which is not authored here; use --from-onnx")
    return dict(each[0])


def _without_local(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The config with the windows' rope of version 5 as version 4's key, and the other layers' alone left.

    Raises:
        UserError: `rope_parameters` has not one dict a type of layer, or the windows' rope is scaled.
    """
    rest, both = dict(config), config.get("rope_parameters")
    if both is None:
        return rest
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(both, dict) or not all(
        k in kinds and isinstance(v, dict | None) for k, v in both.items()
    ):
        raise UserError(f"{file}: rope_parameters has not one object for {kinds[0]} and one for {kinds[1]}")
    full, local = (dict(both.get(kind) or {}) for kind in kinds)
    theta, kind = local.pop("rope_theta", None), local.pop("rope_type", local.pop("type", "default"))
    if local or kind != "default":
        raise UserError(
            f"{file}: the rope of {kinds[1]} layers has the type {kind!r:.40}; only an unscaled one is "
            "authored here; use --from-onnx"
        )
    if theta is not None:
        if rest.get(_LOCAL, theta) != theta:
            raise UserError(f"{file}: {_LOCAL} is {rest[_LOCAL]!r:.40}, and {theta!r:.40} in rope_parameters")
        rest[_LOCAL] = theta
    del rest["rope_parameters"]
    return {**rest, "rope_parameters": full} if full else rest


def _use_outer_context(single: dict[str, Any], file: Path, key: str) -> None:
    """Phi-3's class takes the original context from beside the dict, where its default stands too."""
    scaling = single["rope_scaling"]
    if scaling is None or _ORIGINAL not in scaling:
        return
    inner, outer = scaling.pop(_ORIGINAL), single.get(_ORIGINAL, 4096)
    if inner != outer:
        raise UserError(f"{file}: {_ORIGINAL} is {outer!r:.40}, and {inner!r:.40} in {key}")


def refuse_odd(config: Mapping[str, Any], file: Path) -> None:
    """Refuses a rope that transformers has not, or whose numbers cannot be.

    Args:
        config: normalised so far.
        file: for messages.

    Raises:
        UserError: an unknown type, a key that is missing or not understood, a number out of its range.
    """
    scaling = config["rope_scaling"]
    if scaling is None:
        return
    kind, place = scaling["rope_type"], f"{file}: rope_scaling"
    if not isinstance(kind, str) or kind not in NUMBERS:
        raise UserError(f"{place} has the type {kind!r:.40}; transformers has {', '.join(NUMBERS)}")
    if config["model_type"] == "phi3" and kind not in ("default", "longrope"):
        raise UserError(f"{place} has the type {kind!r}; transformers' phi3 has longrope alone")
    _refuse_odd_numbers(scaling, kind, f"{place} of type {kind!r}")
    outer = config.get(_ORIGINAL)
    if outer is not None and scaling.get(_ORIGINAL, outer) != outer:
        raise UserError(f"{file}: {_ORIGINAL} is {outer}, and {scaling[_ORIGINAL]} in rope_scaling")
    if kind == "longrope":
        _refuse_odd_longrope(config, file)


def _refuse_odd_numbers(scaling: Mapping[str, Any], kind: str, place: str) -> None:
    """Refuses a key that is missing or not understood, and a number out of its range."""
    needed, possible = NUMBERS[kind]
    if missing := [name for name in needed if scaling.get(name) is None]:
        raise UserError(f"{place} has no {missing[0]}")
    for name in sorted(set(scaling) - {"rope_type"} - _HARMLESS):
        if name not in needed + possible:
            raise UserError(f"{place} has a key that is not understood: {name!r:.60}")
        if not _is_sound(name, scaling[name]):
            raise UserError(f"{place}: {name} is {scaling[name]!r:.60}")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise UserError(f"{place}: high_freq_factor must be above low_freq_factor")


def _is_sound(name: str, value: Any) -> bool:
    """Whether a number of a rope is one."""
    if name in ("short_factor", "long_factor"):
        return isinstance(value, list) and all(_is_positive(number) for number in value)
    if name == _ORIGINAL:
        return _is_positive(value) and isinstance(value, int)
    if name == "truncate":
        return isinstance(value, bool)
    return _is_positive(value) or (value is None)


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _refuse_odd_longrope(config: Mapping[str, Any], file: Path) -> None:
    """Versions 4 and 5 of transformers agree where the original context stands beside the dict."""
    scaling, context = config["rope_scaling"], config["max_position_embeddings"]
    pairs = int(config["head_dim"] * config["partial_rotary_factor"]) // 2
    for name in ("short_factor", "long_factor"):
        if len(scaling[name]) != pairs:
            raise UserError(f"{file}: rope_scaling: {name} has {len(scaling[name])} numbers, not {pairs}")
    old = config.get(_ORIGINAL)
    if old is None:
        raise UserError(f"{file}: rope_scaling of type 'longrope' needs {_ORIGINAL} beside it")
    if not math.isclose(scaling.get("factor") or context / old, context / old):
        raise UserError(
            f"{file}: factor in rope_scaling is {scaling['factor']}, but {context} / {old} positions is "
            f"{context / old:g}"
        )
