"""Whether a result is of the artefact and the weights that are there now.

Results are often read where nothing was measured: what does not lie here contradicts nothing.
"""

from __future__ import annotations

from pathlib import Path

from pipeline import store
from pipeline.store.records import BenchRecord, CheckRecord, ScoreRecord, Weights
from pipeline.types import UserError


def refuse_other(record: CheckRecord | BenchRecord | ScoreRecord, path: Path) -> None:
    """Refuses a result of another file of the same name, or of other weights.

    Args:
        record: a result of `check`, `bench` or `score`.
        path: its file.

    Raises:
        UserError: the artefact, or the model's weights, are others now; says which.
    """
    about = record.pipeline if isinstance(record, ScoreRecord) else record
    artefact = store.resolved(about.artefact, path)
    if not artefact.is_file() or not store.sidecar_path(artefact).is_file():
        present = _identities(artefact.parent)
        if present and about.weights is not None and about.weights not in present:
            raise UserError(f"{path} is of other weights than those in {artefact.parent}; measure it again")
        return
    sidecar = store.sidecar(artefact, quick=True)
    if sidecar.sha256 != about.sha256:
        raise UserError(f"{path} is of another {artefact.name} than the one that is there; measure it again")
    store.refuse_other_weights(artefact, sidecar)
    if isinstance(record, ScoreRecord) and record.pipeline.contents not in (None, store.contents(artefact)):
        raise UserError(f"{path} was scored on other weights than those that are there; score it again")
    if not isinstance(record, CheckRecord) or not record.passed:
        return
    if not store.check_passed(artefact, record.sha256, record.provider or "cpu"):
        raise UserError(f"{path} does not speak for the weights that are there; check it again")


def _identities(folder: Path) -> list[Weights]:
    """Of the checkpoint in a model's folder, as its base graphs have it."""
    bases = [path for path in folder.glob("base.*.onnx") if store.sidecar_path(path).is_file()]
    return [store.sidecar(path, quick=True).weights for path in bases]
