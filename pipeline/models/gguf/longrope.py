"""Phi-3 in a GGUF file: its window, and the rope of its long versions (LongRoPE), which is kept in tensors.

Source: llama.cpp's `conversion/phi.py` and `src/models/phi3.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.gguf.numbers import Numbers
from pipeline.types import UserError

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
KEYS = {"attention.sliding_window", "rope.scaling.attn_factor"}
"""Of the architecture: they are read here."""
_ORIGINAL = "rope.scaling.original_context_length"
_CLOSE = 1e-6
"""Relative: the factor is kept as float32."""
Factors = Mapping[str, npt.NDArray[np.float64]]


def phi3(numbers: Numbers, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json has beyond Llama's."""
    window = numbers.fields.get(f"{numbers.arch}.attention.sliding_window")
    rotated = numbers.size("rope.dimension_count", config["head_dim"])
    return {
        "sliding_window": numbers.size("attention.sliding_window") if window else None,
        "original_max_position_embeddings": numbers.size(_ORIGINAL, config["max_position_embeddings"]),
        "partial_rotary_factor": rotated / config["head_dim"],
    }


def scaling(numbers: Numbers, factors: Factors, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """rope_scaling of config.json.

    Args:
        numbers: of the file.
        factors: the tensors LONG and SHORT [D_rot/2], as far as they are there.
        config: config.json so far.

    Returns:
        None where the rope is not scaled.

    Raises:
        UserError: one of the tensors is missing or odd.
    """
    factor = numbers.number("rope.scaling.attn_factor", 1.0)
    if not factors:
        if factor != 1:
            raise UserError(
                f"{numbers.file}: {numbers.arch}.rope.scaling.attn_factor is {factor:g}, and "
                f"{LONG} is missing"
            )
        return None
    half = int(config["head_dim"] * config["partial_rotary_factor"]) // 2
    for name in (LONG, SHORT):
        if name not in factors:
            raise UserError(f"the GGUF file {numbers.file} lacks the tensor {name}")
        if factors[name].shape != (half,) or not np.all(np.isfinite(factors[name]) & (factors[name] > 0)):
            raise UserError(
                f"{numbers.file}: {name} has odd numbers, or not one for two dimensions that are rotated"
            )
    lists = {key: [float(str(np.float32(x))) for x in factors[name]]
             for key, name in (("long_factor", LONG), ("short_factor", SHORT))}  # fmt: skip
    usual = _attention_factor(config["max_position_embeddings"], config["original_max_position_embeddings"])
    other = {} if math.isclose(factor, usual, rel_tol=_CLOSE) else {"attention_factor": factor}
    return {"rope_type": "longrope", **lists, **other}


def _attention_factor(context: int, original: int) -> float:
    """On cosines and sines, as transformers computes it where config.json has none."""
    stretch = context / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
