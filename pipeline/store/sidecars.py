"""The JSON beside an artefact that says how it came to be. A reader refuses one that does not match its artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.store.files import read_json, sha256, write_json
from pipeline.store.paths import healed_path, model_of, result_path, sidecar_path
from pipeline.types import SkipSet, UserError, Variant


def healed_weights(artefact: Path) -> Path | None:
    """The safetensors that hold the weights which a healed artefact's adapter touched; None where it has no adapter."""
    record = read_sidecar(artefact, quick=True)
    if not record.get("adapter"):
        return None
    path = healed_path(checkpoint_folder(artefact), variant_of(record).name)
    if not path.is_file() or sha256(path) != record["healed"]["sha256"]:
        raise UserError(
            f"{path} is not what {artefact.name} was made with; run its `pipeline export … --adapter` again"
        )
    return path


def write_sidecar(artefact: Path, record: dict[str, Any]) -> None:
    """Writes the sidecar with the artefact's SHA-256 and size added."""
    write_json(
        sidecar_path(artefact),
        {**record, "file": artefact.name, "sha256": sha256(artefact), "bytes": artefact.stat().st_size},
    )


def read_sidecar(artefact: Path, quick: bool = False) -> dict[str, Any]:
    """The sidecar of an artefact, after a check that it is the artefact's own.

    Args:
        quick: compare sizes only, where many gigabytes of engines would be hashed just to list them.

    Raises:
        UserError: artefact or sidecar is missing, or they do not match.
    """
    if not artefact.is_file():
        raise UserError(f"{artefact} does not exist; `pipeline list` shows what does")
    if not sidecar_path(artefact).is_file():
        raise UserError(
            f"{artefact} has no sidecar {sidecar_path(artefact).name}; make it with `pipeline export` or `build-engine`"
        )
    record = read_json(sidecar_path(artefact))
    same = isinstance(record, dict) and record.get("bytes") == artefact.stat().st_size
    if not same or not (quick or record.get("sha256") == sha256(artefact)):
        raise UserError(f"{artefact} is not what its sidecar describes; remove it and make it again")
    return record


def variant_of(record: dict[str, Any]) -> Variant:
    """The variant that a sidecar describes.

    Raises:
        UserError: it describes none (a merged graph's, or one that was edited).
    """
    try:
        skip = SkipSet(tuple(record["skip"]["attention"]), tuple(record["skip"]["mlp"]))
        return Variant(
            record["model"], skip, record["precision"], record.get("adapter"), record.get("head", "gather")
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the sidecar of {record.get('file')} describes no variant: it lacks {error}; make the artefact again"
        ) from None


def variant_record(variant: Variant) -> dict[str, Any]:
    """The fields of a sidecar that say which variant it is; `variant_of` reads them back."""
    return {
        "model": variant.model,
        "variant": variant.name,
        "skip": {"attention": list(variant.skip.attention), "mlp": list(variant.skip.mlp)},
        "precision": variant.precision,
        "adapter": variant.adapter,
        "head": variant.head,
    }


def is_current(artefact: Path, wanted: dict[str, Any]) -> bool:
    """Whether the artefact exists, matches its sidecar, and was made from just what is wanted now."""
    try:
        record = read_sidecar(artefact)
    except UserError:
        return False
    return all(record.get(key) == value for key, value in wanted.items())


def check_passed(artefact: Path, digest: str | None = None) -> bool:
    """Whether `pipeline check` has passed on this very artefact (same SHA-256; computed unless given)."""
    result = result_path(model_of(artefact), artefact, "check")
    if not result.is_file():
        return False
    record = read_json(result)
    return bool(record.get("passed")) and record.get("sha256") == (digest or sha256(artefact))


def checkpoint_folder(artefact: Path) -> Path:
    """Where config, tokenizer and weights of a graph's or an engine's model lie."""
    return artefact.parent if artefact.suffix == ".onnx" else Path(read_sidecar(artefact)["folder"])
