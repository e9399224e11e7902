"""The keys of a GGUF file that say what the model computes: from config.json and the layers that are written.

Source: what llama.cpp's `conversion/llama.py`, `deci.py`, `gemma.py` and `phi.py` write; `models.gguf` reads
them. A Python int is a uint32, a float a float32, a list of ints int32.

Legend: H query heads, G key/value heads, D head dimension, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models import rope
from pipeline.models.compensation import MapPlace
from pipeline.models.config import SLIDING, Config
from pipeline.models.gguf import longrope, windows
from pipeline.models.gguf.layers import NOUGHTS
from pipeline.models.gguf.rope import FREQUENCIES
from pipeline.ship.gguf.layers import Layer, MapShape

DECI = "deci"
"""llama.cpp's architecture whose layers have counts of their own."""
PATTERN = "attention.sliding_window_pattern"
"""Key of an architecture that says which layers have the window."""
_PERIODS = {"gemma2": 2, "gemma3": 6}
"""Architecture → every which layer sees everything where no key says it."""


def width(rank: int) -> int:
    """Rows of the feed-forward that is a map of rank R."""
    return -(-rank // NOUGHTS) * NOUGHTS


def cut(config: Config, kept: Sequence[int]) -> dict[str, Any]:
    """config.json of the model with these whole layers alone, as llama.cpp runs it.

    Where an architecture has no windows in llama.cpp, the context is no longer than the window: up to there
    both compute the same.

    Args:
        config: normalised, of the whole model.
        kept: layers, by their indices there.
    """
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    kinds = [kinds[i] for i in kept] if kinds else None
    context = config["max_position_embeddings"]
    slides = window and (kinds is None or SLIDING in kinds)
    if slides and not config["model_type"].startswith("gemma"):
        context = min(context, window)
    return {
        **config,
        "num_hidden_layers": len(kept),
        "max_position_embeddings": context,
        **({"layer_types": kinds} if kinds else {}),
    }


def of_whole_layers(arch: str, config: Config) -> dict[str, Any]:
    """The keys of a model of llama.cpp's architecture of that name.

    Args:
        arch: the architecture.
        config: what `cut` gives.
    """
    keys = {
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        **_common(config),
        **_windows(arch, config),
    }
    return {f"{arch}.{key}": value for key, value in keys.items()}


def of_sublayers(
    config: Config, layers: Sequence[Layer], maps: Mapping[MapPlace, MapShape]
) -> dict[str, Any]:
    """The keys of a model of llama.cpp's architecture `deci`.

    Args:
        config: what `cut` gives.
        layers: that are written.
        maps: that they hold.
    """
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    keys = {
        **_common({**config, "num_hidden_layers": len(layers)}),
        "feed_forward_length": [feed_forward(layer, config["intermediate_size"], maps) for layer in layers],
        "attention.head_count": [heads if layer.attention else 0 for layer in layers],
        "attention.head_count_kv": [
            groups if layer.attention and layer.attention.form == "own" else 0 for layer in layers
        ],
    }
    return {f"{DECI}.{key}": value for key, value in keys.items()}


def feed_forward(layer: Layer, inner: int, maps: Mapping[MapPlace, MapShape]) -> int:
    """Rows of a layer's feed-forward.

    Args:
        layer: of the file.
        inner: rows of the model's own.
        maps: place → what it is made of.
    """
    part = layer.feed_forward
    if part.form == "own":
        return inner
    if part.form == "low rank" and part.place:
        return width(maps[part.place].rank or 0)
    return NOUGHTS


def tables(config: Config) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors that say how the rope is scaled: [D/2] each, by how much a frequency is divided."""
    scaling = config["rope_scaling"] or {}
    if scaling.get("rope_type") == "longrope":
        names = {longrope.LONG: "long_factor", longrope.SHORT: "short_factor"}
        return {name: np.asarray(scaling[key], np.float32) for name, key in names.items()}
    if scaling.get("rope_type") != "llama3":
        return {}
    plain = rope.rope({**config, "rope_scaling": None}).frequencies.astype(np.float64)
    return {FREQUENCIES: (plain / rope.rope(config).frequencies).astype(np.float32)}


def _common(config: Config) -> dict[str, Any]:
    head = config["head_dim"]
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": int(head * config["partial_rotary_factor"]),
        "rope.freq_base": float(config["rope_theta"]),
        **_scaling(config),
    }


def _scaling(config: Config) -> dict[str, Any]:
    """The keys of a rope that is stretched; Llama 3.1's is a tensor."""
    scaling = config["rope_scaling"] or {}
    if scaling.get("rope_type") == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if scaling.get("rope_type") == "longrope":
        return {"rope.scaling.attn_factor": rope.rope(config).factor}
    return {}


def _windows(arch: str, config: Config) -> dict[str, Any]:
    """What Gemma has beyond the others, and the window that Phi-3's files name."""
    if arch == "phi3":  # without these keys llama.cpp loads no such file
        original = config["original_max_position_embeddings"]
        return {
            "attention.sliding_window": config["sliding_window"] or 0,
            "rope.scaling.original_context_length": original,
        }
    if arch not in _PERIODS:
        return {}
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    caps = {name: float(config[name]) for name in names if config.get(name)}
    local = {"rope.freq_base_swa": float(config["rope_local_base_freq"])} if arch == "gemma3" else {}
    if SLIDING not in config["layer_types"]:  # then Gemma 3 has neither a window nor a second rope
        return {**local, **caps}
    pattern = _pattern([kind == SLIDING for kind in config["layer_types"]], _PERIODS[arch])
    other = {} if pattern is None else {PATTERN: pattern}
    return {"attention.sliding_window": config["sliding_window"], **other, **local, **caps}


def _pattern(has_window: list[bool], usual: int) -> int | list[bool] | None:
    """What says which layers have the window; None where llama.cpp knows it by itself.

    Of a number n the last of every n layers sees everything, and of 0 none; else there is one value a layer
    (`llama_model_base::load_swa_pattern`, `llama_hparams::set_swa_pattern`).
    """
    periods = [usual, 0, *range(1, len(has_window))]
    fitting = (one for one in periods if has_window == windows.slides(one, len(has_window)))
    period = next(fitting, None)
    return None if period == usual else has_window if period is None else period
