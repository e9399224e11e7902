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
_USUAL_FACTORS = (8.0, 32.0, 16.0, 4.0, 2.0, 64.0)
_USUAL_HIGHS = (4.0, 2.0, 8.0, 3.0, 1.5, 1.1, 16.0, 32.0)
"""high_freq_factor, beside a low_freq_factor of 1."""


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
    pairs = np.arange(0, config["head_dim"], 2) / config["head_dim"]
    turns = 1 / config["rope_theta"] ** pairs / (2 * np.pi)
    for factor in dict.fromkeys((float(round(largest)), largest, *_USUAL_FACTORS)):
        if factor < largest or factor <= 1:
            continue
        smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
        for old, high in _fits(turns, smooth):
            usual = max(round(old), 1)
            if round(high) > 1:
                yield _llama3(factor, 1.0, float(round(high)), usual)
            yield _llama3(factor, usual / old, high * usual / old, usual)


def _fits(turns: Factors, smooth: Factors) -> Iterator[tuple[float, float]]:
    """(old, high) with low = 1, of which the line over `turns` may be.

    Args:
        turns: [D/2], of each frequency in one token.
        smooth: [D/2], s of each.
    """
    inside = (smooth > 1e-6) & (smooth < 1 - 1e-6)
    if inside.sum() >= 2:
        slope, offset = np.polyfit(turns[inside], smooth[inside], 1)
        fits = [(-slope / offset, 1 - 1 / offset)] if offset else []
    elif inside.any():  # any ratio will do whose ends lie between this frequency and its neighbours
        fits = [((smooth[inside] * (high - 1) + 1)[0] / turns[inside][0], high) for high in _USUAL_HIGHS]
    else:  # a step: both ends lie between two frequencies
        kept, stretched = turns[smooth >= 1 - 1e-6], turns[smooth <= 1e-6]
        has_step = len(kept) and len(stretched) and kept.min() > stretched.max()
        fits = [(1 / np.sqrt(kept.min() * stretched.max()), 1.0001)] if has_step else []
    for old, high in fits:
        if 1 <= old < 2**31 and 1 < high < np.inf:
            yield float(old), float(high)


def _llama3(factor: float, low: float, high: float, original: int) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
