"""Rotary position embedding: the inverse frequencies of every kind of scaling, as in transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.config import Config
from pipeline.types import UserError

Frequencies = npt.NDArray[np.float32]
AUTHORED = ("default", "linear", "llama3", "longrope")
"""Types of scaling that graphs are written with."""


@dataclass(frozen=True, eq=False)
class Rope:
    """How positions become angles. Two are equal where they are the same object.

    Attributes:
        frequencies: inverse frequencies [D_rot/2].
        factor: on cosines and sines.
        long_frequencies: those of LongRoPE, for texts of more than `switch` tokens.
        switch: tokens.
        name: of its table in a graph.
    """

    frequencies: Frequencies
    factor: float = 1.0
    long_frequencies: Frequencies | None = None
    switch: int = 0
    name: str = "rope"


def rope(config: Config) -> Rope:
    """The rotary embedding of a model; `partial_rotary_factor` of the head dimension is rotated.

    Args:
        config: normalised, of a known model_type.

    Raises:
        UserError: a scaling that is not known here.
    """
    base = _unscaled(config, config["rope_theta"])
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    kind = scaling["rope_type"]
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope((base / np.float32(scaling["factor"])).astype(np.float32))
    if kind == "llama3":
        return Rope(_llama3(base, scaling))
    if kind == "longrope":
        return _longrope(base, config, scaling)
    raise UserError(
        f"rope scaling {kind!r} is not authored here ({', '.join(AUTHORED)} are); use --from-onnx"
    )


def local_rope(config: Config) -> Rope:
    """The rotary embedding of Gemma 3's windows: another base, and no scaling."""
    return Rope(_unscaled(config, config["rope_local_base_freq"]), name="rope_local")


def _unscaled(config: Config, theta: float) -> Frequencies:
    """Inverse frequencies theta^(-2k / D_rot), computed in FP64 (Su et al. 2021, section 3.3)."""
    dim = int(config["head_dim"] * config["partial_rotary_factor"])
    frequencies: Frequencies = (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(
        np.float32
    )
    return frequencies


def _llama3(base: Frequencies, scaling: Mapping[str, Any]) -> Frequencies:
    """Llama 3.1: `factor` stretches long wavelengths, keeps short ones, and interpolates between."""
    factor, old = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / base
    smooth = (old / wavelength - low) / (high - low)
    between = (1 - smooth) * base / factor + smooth * base
    scaled = np.where(wavelength > old / low, base / factor, base)
    return np.where((wavelength >= old / high) & (wavelength <= old / low), between, scaled).astype(
        np.float32
    )


def _longrope(base: Frequencies, config: Config, scaling: Mapping[str, Any]) -> Rope:
    """Phi-3 128k: one list of factors up to the original context, another beyond it."""
    old = config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / old
    factor = scaling.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(stretch) / math.log(old)) if stretch > 1 else 1.0
    short, long = (np.asarray(scaling[name], np.float32) for name in ("short_factor", "long_factor"))
    return Rope(base / short, float(factor), base / long, int(old))
