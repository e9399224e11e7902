"""How alike the residual stream is before and after its sublayers: accumulated sequence by sequence, kept with its origin.

Legend: N sequences, T tokens, L layers, C hidden size, K position buckets, M = L + 1 streams (before each layer, and the last).

Cosine: Tyukin et al. 2024, Figure 1 (neighbouring layers), and the same for every sublayer. Angular distance: Gromov et al.
2024, equation 7, d = arccos(x·y / |x||y|) / π between the inputs of layers ℓ and ℓ + n, for all ℓ and n at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from pipeline import store
from pipeline.models import checkpoint
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import UserError

Array = npt.NDArray[Any]
MEASURES = ("cosine_layer", "cosine_attn", "cosine_mlp", "angular", "angular_mean")
"""cosine_*: [K, L], means over the tokens of a bucket; angular: [M, M] at the final token; angular_mean: [K, M, M] over tokens."""


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
                    f"the activations of sequence {self.count} are not finite ({name}); a weight is NaN or infinite: "
                    "look with `pipeline check --localize`"
                )
            value = value.astype(np.float64)
            self.total[name] = self.total.get(name, 0.0) + value
            self.squares[name] = self.squares.get(name, 0.0) + value**2
        self.count += 1

    def mean(self, name: str) -> Array:
        return self.total[name] / self.count

    def stderr(self, name: str) -> Array:
        """Standard error of the mean over sequences; 0 for one sequence."""
        if self.count < 2:
            return np.zeros_like(self.total[name])
        variance = (
            np.maximum(self.squares[name] / self.count - self.mean(name) ** 2, 0)
            * self.count
            / (self.count - 1)
        )
        return np.sqrt(variance / self.count)


def measure(streams: Array, middles: Array, buckets: int) -> dict[str, Array]:
    """One sequence's values.

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
    found = {name: _by_bucket(np.einsum("ltc,ltc->lt", a, b), parts) for name, (a, b) in pairs.items()}
    distances = angular(units.transpose(1, 0, 2))
    found["angular"] = distances[-1]
    found["angular_mean"] = np.stack([distances[part].mean(axis=0) for part in parts])
    return found


def angular(units: Array) -> Array:
    """[…, M, M]: d between every two of M unit vectors […, M, C] (Gromov et al., equation 7)."""
    return np.arccos(np.clip(units @ np.swapaxes(units, -1, -2), -1.0, 1.0)) / np.pi


def _unit(vectors: Array) -> Array:
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def _by_bucket(values: Array, parts: list[Array]) -> Array:
    """[L, T] → [K, L]."""
    return np.stack([values[:, part].mean(axis=1) for part in parts])


# ---- on disk --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Similarity:
    """The statistics of one model on one text.

    Attributes:
        record: the sidecar: model, weights, texts, tokens, runner, versions.
        mean, stderr: measure → array as in MEASURES.
    """

    record: dict[str, Any]
    mean: dict[str, Array]
    stderr: dict[str, Array]

    @property
    def layers(self) -> int:
        return int(self.mean["cosine_layer"].shape[1])

    def cosine(self, kind: str) -> Array:
        """[L]: the cosine over all tokens, of `layer`, `attn` or `mlp`."""
        return self.mean[f"cosine_{kind}"].mean(axis=0)

    def cosine_error(self, kind: str) -> Array:
        """[L]: its standard error, an upper bound: that of the mean of the buckets were they one."""
        return self.stderr[f"cosine_{kind}"].mean(axis=0)

    def distances(self, tokens: str = "final") -> Array:
        """[M, M]: angular distances at the final token, or their mean over all tokens."""
        return self.mean["angular"] if tokens == "final" else self.mean["angular_mean"].mean(axis=0)


def block_curves(distances: Array) -> Array:
    """[L−1, L]: for every block size n (row n−1) the angular distance by first layer, shifted and scaled to 0 … 1; NaN where no block fits.

    Gromov et al. 2024, Figure 4. `distances` is [M, M] with M = L + 1.
    """
    layers = len(distances) - 1
    shown = np.full((layers - 1, layers), np.nan)
    for n in range(1, layers):
        curve = np.diagonal(distances, n)
        spread = np.ptp(curve)
        shown[n - 1, : len(curve)] = (curve - curve.min()) / spread if spread else 0.0
    return shown


def paths(model: str) -> tuple[Path, Path]:
    """(similarity.json, similarity.npz)."""
    folder = store.calib_dir(model)
    return folder / "similarity.json", folder / "similarity.npz"


def write(model: str, record: dict[str, Any], sums: Sums) -> Path:
    """Writes the arrays, then the sidecar that names their digest."""
    json_path, npz_path = paths(model)
    arrays = {f"{name}.mean": sums.mean(name) for name in sums.total} | {
        f"{name}.stderr": sums.stderr(name) for name in sums.total
    }
    with store.atomic(npz_path) as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    short = {
        f"cosine_{kind}": sums.mean(f"cosine_{kind}").mean(axis=0).tolist()
        for kind in ("layer", "attn", "mlp")
    }
    store.write_json(
        json_path, {**record, "samples": sums.count, "arrays_sha256": store.sha256(npz_path), **short}
    )
    return json_path


def read(model: str, weights: Any) -> Similarity:
    """The statistics of a model.

    Args:
        weights: the identity of the checkpoint that they must be of.

    Raises:
        UserError: there are none, they are of other weights, or the arrays are not those of the sidecar.
    """
    json_path, npz_path = paths(model)
    command = f"`pipeline calibrate {model}`"
    if not json_path.is_file() or not npz_path.is_file():
        raise UserError(
            f"{json_path} is missing: this selector needs the model's similarity statistics; make them with {command}"
        )
    record = store.read_json(json_path)
    if record.get("weights") != weights:
        raise UserError(f"{json_path} was measured on other weights; measure again with {command}")
    if record.get("arrays_sha256") != store.sha256(npz_path):
        raise UserError(f"{npz_path} is not what {json_path.name} describes; measure again with {command}")
    with np.load(npz_path, allow_pickle=False) as held:
        mean = {name: held[f"{name}.mean"] for name in MEASURES}
        stderr = {name: held[f"{name}.stderr"] for name in MEASURES}
    return Similarity(record, mean, stderr)


def of_checkpoint(folder: Path) -> Similarity:
    """The statistics of the checkpoint in `folder`.

    Raises:
        UserError: as `read`.
    """
    found = checkpoint.open_checkpoint(folder)
    return read(found.model, identity(found))


def of_model(model: str) -> Similarity:
    """The statistics of a model under graphs/."""
    return of_checkpoint(store.graphs_dir(model))


def identity(found: Checkpoint) -> Any:
    """What the statistics are of: the weights' headers, or the export that they came with."""
    return found.identity


def table(model: str, told: Similarity) -> Table:
    """Cosines by layer, and attention's by position bucket: whether deep attention matters more late in the context."""
    record = told.record
    buckets, length = record["buckets"], record["length"]
    made = Table(
        title=f"{model}: cosine of the stream before and after, {record['samples']} sequences of {length} tokens"
    )
    made.add_column("layer", justify="right")
    for heading in ("whole layer", "attention", "MLP"):
        made.add_column(heading, justify="right")
    edges = [length * k // buckets for k in range(buckets + 1)]
    for k in range(buckets):
        made.add_column(f"attention, tokens {edges[k]}-{edges[k + 1] - 1}", justify="right")
    for layer in range(told.layers):
        cells = [
            f"{told.cosine(kind)[layer]:.3f} ±{told.cosine_error(kind)[layer]:.3f}"
            for kind in ("layer", "attn", "mlp")
        ]
        made.add_row(str(layer), *cells, *(f"{value:.3f}" for value in told.mean["cosine_attn"][:, layer]))
    return made
