"""What one sequence's residual stream says of a model's layers, summed up over sequences.

Legend: N sequences, T tokens, L layers, C hidden size, K position buckets, M = L + 1 streams (before each
layer, and the last).

Cosine: Tyukin et al. 2024, Figure 1 (neighbouring layers), and the same for every sublayer. Angular distance:
Gromov et al. 2024, equation 7, d = arccos(x·y / |x||y|) / π between the inputs of layers ℓ and ℓ + n, for all
ℓ and n at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.types import UserError

Array = npt.NDArray[Any]
MEASURES = ("cosine_layer", "cosine_attn", "cosine_mlp", "angular", "angular_mean")
"""cosine_* [K, L], angular_mean [K, M, M]: means over a bucket's tokens; angular [M, M]: of the last one."""


@dataclass(slots=True)
class Sums:
    """Running sums of per-sequence values and of their squares; its size does not grow with N.

    Attributes:
        count: N.
        total, squares: measure → sum over sequences.
    """

    count: int = 0
    total: dict[str, Array] = field(default_factory=dict)
    squares: dict[str, Array] = field(default_factory=dict)

    def add(self, values: dict[str, Array]) -> None:
        """Adds one sequence's values.

        Raises:
            UserError: a value is not a number: the model or the text is broken.
        """
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise UserError(
                    f"the activations of sequence {self.count} are not finite ({name}); "
                    "a weight is NaN or infinite: look with `pipeline check --localize`"
                )
            value = value.astype(np.float64)
            self.total[name] = self.total.get(name, 0.0) + value
            self.squares[name] = self.squares.get(name, 0.0) + value**2
        self.count += 1

    def mean(self, name: str) -> Array:
        """Mean of a measure over sequences."""
        mean: Array = self.total[name] / self.count
        return mean

    def stderr(self, name: str) -> Array:
        """Standard error of the mean over sequences; 0 for one sequence."""
        if self.count < 2:
            return np.zeros_like(self.total[name])
        spread = np.maximum(self.squares[name] / self.count - self.mean(name) ** 2, 0)
        error: Array = np.sqrt(spread / (self.count - 1))
        return error


def measure(streams: Array, middles: Array, buckets: int) -> dict[str, Array]:
    """One sequence's values, by measure.

    Args:
        streams: [M, T, C], the stream before each layer and after the last.
        middles: [L, T, C], the stream between each layer's attention and its MLP.
        buckets: K; bucket k holds the tokens k·T/K … (k+1)·T/K − 1.
    """
    units = _unit(streams)
    halves = _unit(middles)
    parts = np.array_split(np.arange(streams.shape[1]), buckets)
    pairs = {
        "cosine_layer": (units[:-1], units[1:]),
        "cosine_attn": (units[:-1], halves),
        "cosine_mlp": (halves, units[1:]),
    }
    values = {name: _by_bucket(np.einsum("ltc,ltc->lt", a, b), parts) for name, (a, b) in pairs.items()}
    distances = angular(units.transpose(1, 0, 2))
    values["angular"] = distances[-1]
    values["angular_mean"] = np.stack([distances[part].mean(axis=0) for part in parts])
    return values


def angular(units: Array) -> Array:
    """[…, M, M]: d between every two of M unit vectors […, M, C] (Gromov et al., equation 7)."""
    distances: Array = np.arccos(np.clip(units @ np.swapaxes(units, -1, -2), -1.0, 1.0)) / np.pi
    return distances


def _unit(vectors: Array) -> Array:
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def _by_bucket(values: Array, parts: list[Array]) -> Array:
    """[L, T] → [K, L]."""
    return np.stack([values[:, part].mean(axis=1) for part in parts])
