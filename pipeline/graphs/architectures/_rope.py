"""Rotary position embedding: the inverse frequencies of every kind of scaling, as transformers computes them.

The angles are computed in the graph from `position_ids`, so that no table bounds the context length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.config import Config
from pipeline.types import UserError

Frequencies = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """How positions become angles.

    Attributes:
        frequencies: inverse frequencies [D_rot/2].
        factor: on cosines and sines.
        long_frequencies: those of LongRoPE, for texts of more than `switch` tokens.
        switch: tokens.
    """

    frequencies: Frequencies
    factor: float = 1.0
    long_frequencies: Frequencies | None = None
    switch: int = 0


def rope(config: Config, head_dim: int) -> Rope:
    """The rotary embedding that a config.json asks for.

    Args:
        config: config.json, with `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.
        head_dim: D; `partial_rotary_factor` of it is rotated.

    Raises:
        UserError: a scaling that is not known here.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    partial = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    dim = int(head_dim * partial)
    base = (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope((base / np.float32(parameters["factor"])).astype(np.float32))
    if kind == "llama3":
        return Rope(_llama3(base, parameters))
    if kind in ("longrope", "su"):
        return _longrope(base, config, parameters)
    raise UserError(
        f"rope scaling {kind!r} is not authored here (default, linear, llama3 and longrope are); "
        "use --from-onnx"
    )


def _llama3(base: Frequencies, parameters: dict[str, Any]) -> Frequencies:
    """Llama 3.1: `factor` stretches long wavelengths, keeps short ones, and interpolates between."""
    factor, old = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelength = 2 * math.pi / base
    smooth = (old / wavelength - low) / (high - low)
    between = (1 - smooth) * base / factor + smooth * base
    scaled = np.where(wavelength > old / low, base / factor, base)
    return np.where((wavelength >= old / high) & (wavelength <= old / low), between, scaled).astype(
        np.float32
    )


def _longrope(base: Frequencies, config: Config, parameters: dict[str, Any]) -> Rope:
    """Phi-3 128k: one list of factors up to the original context, another beyond it."""
    old = parameters.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / old
    factor = parameters.get("attention_factor") or (
        math.sqrt(1 + math.log(stretch) / math.log(old)) if stretch > 1 else 1.0
    )
    short, long = (np.asarray(parameters[name], np.float32) for name in ("short_factor", "long_factor"))
    return Rope(base / short, float(factor), base / long, int(old))
