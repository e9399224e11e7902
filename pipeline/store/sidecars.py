"""The JSON beside an artefact that says how it came to be, refused where it does not match the artefact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.store import records
from pipeline.store.files import sha256, write_json
from pipeline.store.paths import healed_path, resolved, result_of, sidecar_path
from pipeline.store.records import CheckRecord, EngineRecord, GraphRecord, Sidecar
from pipeline.types import UserError, Variant


def sidecar(artefact: Path, quick: bool = False) -> Sidecar:
    """The sidecar of an artefact, after a check that it is the artefact's own.

    Args:
        artefact: a graph or an engine.
        quick: compare sizes only, where many gigabytes of engines would be hashed just to list them.

    Raises:
        UserError: artefact or sidecar is missing, or they do not match.
    """
    if not artefact.is_file():
        raise UserError(f"{artefact} does not exist; `pipeline list` shows what does")
    path = sidecar_path(artefact)
    if not path.is_file():
        raise UserError(
            f"{artefact} has no sidecar {path.name}; make it with `pipeline export` or `build-engine`"
        )
    record = records.read(records.SIDECAR, path)
    same = record.bytes == artefact.stat().st_size
    if not same or not (quick or record.sha256 == sha256(artefact)):
        raise UserError(f"{artefact} is not what its sidecar describes; remove it and make it again")
    return record


def graph_sidecar(artefact: Path) -> GraphRecord:
    """The sidecar of a variant's graph.

    Raises:
        UserError: as `sidecar`; or it is a merged graph or an engine.
    """
    record = sidecar(artefact)
    if not isinstance(record, GraphRecord):
        raise UserError(
            f"{artefact} is no variant's graph but {KINDS[record.artefact]}; "
            "name a graph that `pipeline export` wrote"
        )
    return record


def engine_sidecar(artefact: Path, quick: bool = False) -> EngineRecord:
    """The sidecar of an engine.

    Raises:
        UserError: as `sidecar`; or it is a graph.
    """
    record = sidecar(artefact, quick)
    if not isinstance(record, EngineRecord):
        raise UserError(f"{artefact} is no engine but {KINDS[record.artefact]}")
    return record


KINDS = {"graph": "a graph", "merged": "a merged graph", "engine": "an engine"}


def variant(artefact: Path, quick: bool = False) -> Variant:
    """The variant that a graph or an engine computes.

    Raises:
        UserError: as `sidecar`; or it computes several (a merged graph, or an engine of one).
    """
    record = sidecar(artefact, quick)
    of = record.as_variant() if isinstance(record, GraphRecord | EngineRecord) else None
    if of is None:
        raise UserError(f"{artefact} holds several variants; name the graphs that it was merged from")
    return of


def write_sidecar(artefact: Path, fields: Mapping[str, Any]) -> Sidecar:
    """Writes the sidecar, with the artefact's name, SHA-256 and size added, and gives it back as it is read.

    Args:
        artefact: the file, which is there.
        fields: as the record of its kind has them.
    """
    written = {"file": artefact.name, "sha256": sha256(artefact), "bytes": artefact.stat().st_size}
    path = sidecar_path(artefact)
    write_json(path, {**fields, **written})
    return records.read(records.SIDECAR, path)


def is_current(artefact: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the artefact exists, matches its sidecar, and was made from just what is wanted now."""
    try:
        return sidecar(artefact).matches(wanted)
    except UserError:
        return False


def checkpoint_folder(artefact: Path) -> Path:
    """Where config, tokenizer and weights of a graph's or an engine's model lie."""
    if artefact.suffix == ".onnx":
        return artefact.parent
    return resolved(engine_sidecar(artefact, quick=True).folder, artefact)


def healed_weights(artefact: Path) -> Path | None:
    """The safetensors with the weights that an artefact's adapter changed; None where it has no adapter.

    Raises:
        UserError: they are missing, or not what the artefact was made with.
    """
    record = sidecar(artefact, quick=True)
    if isinstance(record, EngineRecord) and record.adapter is not None:
        return healed_weights(checkpoint_folder(artefact) / record.graph.file)
    if not isinstance(record, GraphRecord) or record.adapter is None:
        return None
    path = healed_path(artefact.parent, record.variant)
    if record.healed is None or not path.is_file() or sha256(path) != record.healed.sha256:
        raise UserError(
            f"{path} is not what {artefact.name} was made with; run its `pipeline export … --adapter` again"
        )
    return path


def check_passed(artefact: Path, digest: str | None = None) -> bool:
    """Whether `pipeline check` has passed on this very artefact (same SHA-256; computed unless given)."""
    record = records.read_if_valid(CheckRecord, result_of(artefact, "check"))
    return record is not None and record.passed and record.sha256 == (digest or sha256(artefact))
