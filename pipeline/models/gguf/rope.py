"""Rope scaling of a GGUF file → rope_scaling of config.json.

llama.cpp keeps the scaling of Llama 3.1 as a tensor, `rope_freqs.weight`: by how much each frequency is
divided (`conversion/llama.py`, generate_extra_tensors). The numbers that made it are found again, and must
give it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models import rope as authored
from pipeline.types import UserError

Factors = npt.NDArray[np.float64]
FREQUENCIES = "rope_freqs.weight"
_CLOSE = 2e-6
"""Relative: the tensor is float32 and was computed in float32."""
_USUAL = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaling(file: Path, fields: Mapping[str, Any], arch: str) -> dict[str, Any] | None:
    """What the keys say.

    Raises:
        UserError: a type of scaling that transformers has not, or one without its numbers.
    """

    def get(key: str) -> Any:
        return fields.get(f"{arch}.rope.{key}")

    kind, factor = get("scaling.type"), get("scaling.factor") or get("scale_linear") or 1.0
    if kind is None:  # llama.cpp's default, whatever the factor
        kind = "linear"
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    original = get("scaling.original_context_length")
    if kind != "yarn" or original is None:
        raise UserError(
            f"{file}: {arch}.rope.scaling.type is {kind!r:.40}"
            f"{' without original_context_length' if kind == 'yarn' else ', which is not read from GGUF'}; "
            "take the safetensors checkpoint of this model"
        )
    betas = {name: get(f"scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    given = {name: float(value) for name, value in betas.items() if value is not None}
    return {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": original,
        **given,
    }


def of_frequencies(file: Path, factors: Factors, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling of Llama 3.1 that gives these factors.

    Args:
        file: for messages.
        factors: [D/2], of `rope_freqs.weight`.
        config: config.json so far: `head_dim`, `rope_theta`.

    Returns:
        None where every factor is 1.

    Raises:
        UserError: no scaling that transformers has gives them.
    """
    if factors.shape != (config["head_dim"] // 2,) or not np.all(np.isfinite(factors) & (factors > 0)):
        raise UserError(f"{file}: {FREQUENCIES} has odd numbers, or not one for two of a head's dimensions")
    if np.all(factors == 1):
        return None
    for candidate in _candidates(factors, config):
        if _gives(candidate, factors, config):
            return candidate
    raise UserError(
        f"{file}: {FREQUENCIES} divides the frequencies by numbers that no scaling of Llama 3.1 gives; take "
        "the safetensors checkpoint of this model"
    )


def _gives(candidate: Mapping[str, Any], factors: Factors, config: Mapping[str, Any]) -> bool:
    """Whether the graph's own frequencies with this scaling are those of the file."""
    sizes = {"head_dim": config["head_dim"], "partial_rotary_factor": 1.0, "rope_theta": config["rope_theta"]}
    plain = authored.rope({**sizes, "rope_scaling": None}).frequencies
    scaled = authored.rope({**sizes, "rope_scaling": candidate}).frequencies
    return bool(np.allclose(scaled, plain / factors, rtol=_CLOSE, atol=0))


def _candidates(factors: Factors, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Scalings that may have made these factors, the most usual first.

    Between the two ends a factor f of frequency x is 1/f = (1 − s)/F + s, where s = (old·x/2π − low) /
    (high − low). So s is a line over x/2π. Only the ratio of old, low and high counts, and low = 1 is usual.
    """
    largest = float(factors.max())
    if np.all(factors == largest):
        yield {"rope_type": "linear", "factor": largest}
        return
    turns = (
        1 / config["rope_theta"] ** (np.arange(0, config["head_dim"], 2) / config["head_dim"]) / (2 * np.pi)
    )
    smooth = (1 / factors - 1 / largest) / (1 - 1 / largest)
    inside = (smooth > 1e-6) & (smooth < 1 - 1e-6)
    if inside.sum() >= 2:
        slope, offset = np.polyfit(turns[inside], smooth[inside], 1)
        old, high = -slope / offset, 1 - 1 / offset
    elif inside.any():
        high = _USUAL["high_freq_factor"]
        old = float((smooth[inside] * (high - 1) + 1)[0] / turns[inside][0])
    else:  # a step: both ends lie between two frequencies
        kept, stretched = turns[factors == 1], turns[factors == largest]
        if not len(kept) or kept.min() <= stretched.max():
            return
        old, high = 1 / float(np.sqrt(kept.min() * stretched.max())), 1.0001
    if not (np.isfinite(old) and np.isfinite(high) and old >= 1 and high > 1):
        return
    usual = round(old)
    yield _llama3(largest, 1.0, float(round(high)), usual)
    yield _llama3(float(round(largest)), 1.0, float(round(high)), usual)
    yield _llama3(largest, usual / old, high * usual / old, usual)


def _llama3(factor: float, low: float, high: float, original: int) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
