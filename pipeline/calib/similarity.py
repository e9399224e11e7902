"""The similarity statistics of a model: how alike the residual stream is before and after its sublayers.

Legend: N sequences, L layers, K position buckets, M = L + 1 streams (before each layer, and the last).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from pipeline import store
from pipeline.calib.measures import MEASURES, Array, Sums
from pipeline.models import origins
from pipeline.models.checkpoint import open_checkpoint
from pipeline.store import arrays, records
from pipeline.store.records import SimilarityRecord, SimilarityRequest
from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class Similarity:
    """The statistics of one model on one text.

    Attributes:
        record: how they were measured.
        mean, stderr: measure → array as in MEASURES.
    """

    record: SimilarityRecord
    mean: dict[str, Array]
    stderr: dict[str, Array]

    @property
    def layers(self) -> int:
        """L."""
        return int(self.mean["cosine_layer"].shape[1])

    def cosine(self, kind: str) -> Array:
        """[L]: the cosine over all tokens, of `layer`, `attn` or `mlp`."""
        cosine: Array = self.mean[f"cosine_{kind}"].mean(axis=0)
        return cosine

    def by_candidate(self, *kinds: str) -> dict[str, float]:
        """Name of each candidate ('attn3', 'mlp3', 'block3') → its cosine; a block's is the layer's."""
        return {
            f"{kind}{layer}": float(value)
            for kind in kinds
            for layer, value in enumerate(self.cosine("layer" if kind == "block" else kind))
        }

    def cosine_error(self, kind: str) -> Array:
        """[L]: its standard error, as the mean of the buckets' errors, which is an upper bound."""
        error: Array = self.stderr[f"cosine_{kind}"].mean(axis=0)
        return error

    def distances(self, tokens: str = "final") -> Array:
        """[M, M]: angular distances at the final token, or their mean over all tokens."""
        return self.mean["angular"] if tokens == "final" else self.mean["angular_mean"].mean(axis=0)


def block_curves(distances: Array) -> Array:
    """Angular distance of every block, each block size scaled to 0 … 1 (Gromov et al. 2024, Figure 4).

    Args:
        distances: [M, M].

    Returns:
        [L−1, L]: row n−1 holds the blocks of n layers by their first layer; NaN where no block fits.
    """
    layers = len(distances) - 1
    curves = np.full((layers - 1, layers), np.nan)
    for n in range(1, layers):
        curve = np.diagonal(distances, n)
        spread = np.ptp(curve)
        curves[n - 1, : len(curve)] = (curve - curve.min()) / spread if spread else 0.0
    return curves


def paths(folder: Path) -> tuple[Path, Path]:
    """(similarity.json, similarity.npz) in calib/<model>."""
    return folder / "similarity.json", folder / "similarity.npz"


def write(folder: Path, request: SimilarityRequest, sums: Sums) -> Path:
    """Writes the arrays into calib/<model>, then the record that names their digest."""
    json_path, npz_path = paths(folder)
    arrays = {f"{name}.mean": sums.mean(name) for name in sums.total}
    arrays |= {f"{name}.stderr": sums.stderr(name) for name in sums.total}
    with store.atomic(npz_path) as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    layer, attn, mlp = (
        tuple(float(value) for value in sums.mean(f"cosine_{kind}").mean(axis=0))
        for kind in ("layer", "attn", "mlp")
    )
    record = SimilarityRecord(
        **dict(request),
        samples=sums.count,
        arrays_sha256=store.sha256(npz_path),
        cosine_layer=layer,
        cosine_attn=attn,
        cosine_mlp=mlp,
    )
    store.write_json(json_path, record.plain())
    return json_path


def read(
    folder: Path, weights: records.Weights | None, contents: str | None = None, name: str | None = None
) -> Similarity:
    """The statistics of a model.

    Args:
        folder: calib/<model>.
        weights: identity of the checkpoint that they must be of.
        contents: digest of every byte of it.
        name: what the model is called by on a command line; the folder's name by default.

    Raises:
        UserError: there are none, they are of other weights, or the arrays are not those of the record.
    """
    json_path, npz_path = paths(folder)
    command = f"`pipeline calibrate {shlex.quote(name or folder.resolve().name)}`"
    if not json_path.is_file() or not npz_path.is_file():
        raise UserError(
            f"{json_path} is missing: the model has no similarity statistics; make them with {command}"
        )
    record = records.read(SimilarityRecord, json_path)
    if (record.weights, record.contents) != (weights, contents):
        older = "" if record.contents else ", or by a version that did not look at their content"
        raise UserError(f"{json_path} was measured on other weights{older}; measure again with {command}")
    records.refuse_odd_file(npz_path, records.MAX_BYTES)
    if record.arrays_sha256 != store.sha256(npz_path):
        raise UserError(f"{npz_path} is not what {json_path.name} describes; measure again with {command}")
    try:
        kept = arrays.read_arrays(npz_path)
    except UserError as error:
        raise UserError(f"{error}; measure again with {command}") from None
    mean, stderr = (
        {name: kept.get(f"{name}.{kind}", np.empty(0)) for name in MEASURES} for kind in ("mean", "stderr")
    )
    if not (_fit(record, mean) and _fit(record, stderr)):
        raise UserError(f"{npz_path} does not hold the statistics of a model; measure again with {command}")
    return Similarity(record, mean, stderr)


def _fit(record: SimilarityRecord, kept: dict[str, Array]) -> bool:
    """Whether arrays are finite numbers of the shapes that MEASURES has."""
    layers, buckets = kept["cosine_layer"].shape[-1:], record.buckets
    streams = tuple(count + 1 for count in layers)
    shapes = dict.fromkeys(MEASURES, (buckets, *layers))
    shapes |= {"angular": streams * 2, "angular_mean": (buckets, *streams * 2)}
    return bool(layers and layers[0] and buckets) and all(
        kept[name].shape == shape and kept[name].dtype.kind == "f" and np.isfinite(kept[name]).all()
        for name, shape in shapes.items()
    )


def is_there(folder: Path) -> bool:
    """Whether the checkpoint in `folder` has statistics, of whatever weights."""
    return all(path.is_file() for path in paths(open_checkpoint(folder).calib))


def of_checkpoint(folder: Path) -> Similarity:
    """The statistics of the checkpoint in `folder`.

    Raises:
        UserError: as `read`.
    """
    checkpoint = open_checkpoint(folder)
    name = checkpoint.model if origins.is_a_projects(folder) else str(folder)
    return read(checkpoint.calib, checkpoint.identity, checkpoint.contents, name)


def of_model(model: str, project: store.Project | None = None) -> Similarity:
    """The statistics of a model under graphs/.

    Raises:
        UserError: as `read`.
    """
    return of_checkpoint((project or store.Project()).graphs(model))


def table(model: str, similarity: Similarity) -> Table:
    """Cosines by layer, and attention's by position bucket.

    The buckets show whether deep attention matters more late in the context.
    """
    buckets, length = similarity.record.buckets, similarity.record.length
    rows = Table(
        title=f"{model}: cosine of the stream before and after, "
        f"{similarity.record.samples} sequences of {length} tokens"
    )
    rows.add_column("layer", justify="right")
    for heading in ("whole layer", "attention", "MLP"):
        rows.add_column(heading, justify="right")
    edges = [length * k // buckets for k in range(buckets + 1)]
    for k in range(buckets):
        rows.add_column(f"attention,\ntokens {edges[k]}-{edges[k + 1] - 1}", justify="right")
    for layer in range(similarity.layers):
        cells = [
            f"{similarity.cosine(kind)[layer]:.3f} ±{similarity.cosine_error(kind)[layer]:.3f}"
            for kind in ("layer", "attn", "mlp")
        ]
        by_bucket = similarity.mean["cosine_attn"][:, layer]
        rows.add_row(str(layer), *cells, *(f"{value:.3f}" for value in by_bucket))
    return rows
