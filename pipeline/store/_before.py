"""The names that callers used before `Project` and typed records; goes when the last caller has moved on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.store import paths, sidecars
from pipeline.store.files import read_json
from pipeline.store.paths import Project
from pipeline.types import UserError, Variant


def graphs_dir(model: str) -> Path:
    return Project().graphs(model)


def engines_dir(model: str, variant: str) -> Path:
    return Project().engines(model, variant)


def calib_dir(model: str) -> Path:
    return Project().calib(model)


def results_dir(model: str) -> Path:
    return Project().results(model)


def figures_dir(model: str) -> Path:
    return Project().figures(model)


def sweep_dir(recipe: str) -> Path:
    return Project().sweep(recipe)


def engine_path(model: str, variant: str, backend: str, targets: str, precision: str) -> Path:
    return Project().engine(model, variant, backend, targets, precision)


def result_path(model: str, artefact: Path, what: str) -> Path:
    return Project.of(artefact).result(artefact, what)


def report_dir() -> Path:
    return Project().report()


def report_inputs() -> dict[str, list[Path]]:
    return Project().report_inputs()


def requests_dir(folder: Path) -> Path:
    return Project.of(folder / "x").requests(folder.resolve().name)


def prompts_path(digest: str) -> Path:
    return Project().prompts(digest)


def read_sidecar(artefact: Path, quick: bool = False) -> dict[str, Any]:
    """The sidecar as a plain dict."""
    sidecars.read(artefact, quick)
    record: dict[str, Any] = read_json(paths.sidecar_path(artefact))
    return record


def variant_of(record: dict[str, Any]) -> Variant:
    import json

    from pipeline.store.records import VariantRecord, parse

    try:
        return parse(VariantRecord, json.dumps(record).encode(), Path(str(record.get("file")))).as_variant()
    except UserError:
        raise UserError(
            f"the sidecar of {record.get('file')} describes no variant; make the artefact again"
        ) from None
