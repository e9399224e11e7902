"""The JSON beside an artefact that says how it came to be, refused where it does not match the artefact."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.store import records, weights
from pipeline.store.files import sha256, write_json
from pipeline.store.paths import QUANTISED, plain_name, resolved, result_of, sidecar_path
from pipeline.store.records import CheckRecord, EngineRecord, FileDigest, GraphRecord, MergedRecord, Sidecar
from pipeline.types import PROVIDERS, Provider, SkipSet, UserError, Variant

log = logging.getLogger(__name__)


def sidecar(artefact: Path, quick: bool = False) -> Sidecar:
    """The sidecar of an artefact, after a check that it is the artefact's own, and of the weights beside it.

    Args:
        artefact: a graph or an engine.
        quick: compare its size only, where many gigabytes of engines would be hashed just to list them.

    Raises:
        UserError: artefact or sidecar is missing, they do not match, or the weights are others.
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
    if artefact.name != record.file and _is_variants_name(artefact):
        raise UserError(
            f"{artefact} is {record.file} under another variant's name; remove it, or give it its own name"
        )
    if not quick:
        refuse_other_weights(artefact, record)
    return record


def _is_variants_name(artefact: Path) -> bool:
    """Whether a file is named as this project names graphs: tables and results would call it that variant."""
    try:
        SkipSet.parse(artefact.name.split(".")[0].split("~")[0])
    except UserError:
        return False
    return True


def refuse_other_weights(artefact: Path, record: Sidecar) -> None:
    """Refuses an artefact whose weights are not those that it was made with; missing ones are not judged.

    Sidecars of 0.1 and 0.2 say nothing of the content of weights, so that only a check can.

    Raises:
        UserError: a file of its weights, or of its overlays, has other content.
    """
    folder = resolved(record.folder, artefact) if isinstance(record, EngineRecord) else artefact.parent
    if changed := weights.changed(record.files, folder):
        raise UserError(
            f"{changed} is not what {artefact} was made with: its content is another; "
            f"run `pipeline {_command(record)}` again"
        )
    for overlay in _overlays(record):
        _refuse_other_overlay(artefact, record, folder / overlay.file, overlay.sha256)


def _command(record: Sidecar) -> str:
    """What makes an artefact again."""
    if isinstance(record, EngineRecord):
        return "build-engine"
    return (
        "merge"
        if isinstance(record, MergedRecord)
        else "export" + " --from-onnx FOLDER" * (record.contract == "optimum")
    )


def _overlays(record: Sidecar) -> tuple[FileDigest, ...]:
    """The files that a graph reads beside the checkpoint's."""
    if isinstance(record, MergedRecord):
        return record.healed
    return record.overlays if isinstance(record, GraphRecord) else ()


def _refuse_other_overlay(artefact: Path, record: Sidecar, path: Path, digest: str) -> None:
    """Refuses an overlay that another command has written anew since, or that was changed."""
    if path.is_file() and weights.state(path, full=True).sha256 == digest:
        return
    if isinstance(record, GraphRecord) and record.contract == "authored":
        parts = {"compensation": record.compensation, "adapter": record.adapter}
        options = "".join(f" --{name} {shlex.quote(part)}" for name, part in parts.items() if part)
        command = (
            f"`pipeline export … --skip {record.skip_set.name}{options} --precision {record.precision_name}`"
        )
    else:
        command = "`pipeline merge`" if isinstance(record, MergedRecord) else "`pipeline compensate`"
    raise UserError(f"{path} is not what {artefact.name} was made with; make the graph again with {command}")


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
        record = sidecar(artefact)
    except UserError as error:
        log.debug("%s", error)
        return False
    if not weights.is_content(record.weights):
        log.warning("%s is of an older version, which did not look at the weights' content", artefact)
        return False
    return record.matches(wanted)


def checkpoint_folder(artefact: Path) -> Path:
    """Where config, tokenizer and weights of a graph's or an engine's model lie."""
    if artefact.suffix == ".onnx":
        return artefact.parent
    return resolved(engine_sidecar(artefact, quick=True).folder, artefact)


def compensation_overlay(artefact: Path) -> Path:
    """Of an artefact's overlays that of its compensation, which it has.

    Raises:
        UserError: as `overlays`.
    """
    return overlays(artefact)[1 if variant(artefact, quick=True).quantisation else 0]


def overlays(artefact: Path) -> tuple[Path, ...]:
    """The safetensors whose tensors an artefact reads beside the checkpoint's, or was built from.

    Returns:
        The quantised weights, the maps and folded weights of its compensation, then the weights that its
        adapter changed: a later file's tensors stand in the place of an earlier one's.

    Raises:
        UserError: one is missing, or not what the artefact was made with.
    """
    record = sidecar(artefact, quick=True)
    if isinstance(record, EngineRecord):
        if (record.adapter, record.compensation, record.quantisation) == (None, None, None):
            return ()
        return overlays(checkpoint_folder(artefact) / record.graph.file)
    paths = []
    for overlay in record.overlays if isinstance(record, GraphRecord) else ():
        path = artefact.parent / plain_name(overlay.file)
        _refuse_other_overlay(artefact, record, path, overlay.sha256)
        paths.append(path)
    return tuple(paths)


def weight_paths(artefact: Path) -> list[Path]:
    """The files that an artefact's weights are from: the checkpoint's, and its overlays."""
    record, folder = sidecar(artefact, quick=True), checkpoint_folder(artefact)
    names = [file.file for file in record.files] + [file.file for file in _overlays(record)]
    if not weights.is_content(record.weights):  # of 0.1 or 0.2, which named none, but optimum's data
        known = list(record.weights) if isinstance(record.weights, dict) else []
        own = (path.name for path in folder.glob("*.safetensors") if "~" not in path.name)
        names += known or [name for name in own if not name.startswith(QUANTISED)]
    return [folder / name for name in dict.fromkeys(names)]


def contents(artefact: Path) -> str:
    """SHA-256 over every byte of the weights that lie beside a graph, or that an engine was built from."""
    record = sidecar(artefact, quick=True)
    if isinstance(record, EngineRecord):
        return weights.contents_of(record.files)
    return weights.contents(path for path in weight_paths(artefact) if path.is_file())


def refuse_damaged(artefact: Path) -> None:
    """Reads every byte of an artefact and of its weights, whatever their dates say, and compares all of them.

    Raises:
        UserError: a file is not what it was when the artefact was written, checked, or its digest was taken.
    """
    if sha256(artefact, fresh=True) != sidecar(artefact, quick=True).sha256:
        raise UserError(f"{artefact} is not what its sidecar describes; remove it and make it again")
    checked = dict[Path, set[str | None]]()
    proven: list[Provider] = [one for one in PROVIDERS if check_passed(artefact, provider=one)] or ["cpu"]
    for result in {result_of(artefact, "check", one) for one in proven}:
        record = records.read_if_valid(CheckRecord, result)
        for file in (record and record.files) or ():
            checked.setdefault(resolved(file.file, result).resolve(), set()).add(file.sha256)
    overlaid = {file.file: file.sha256 for file in _overlays(sidecar(artefact, quick=True))}
    for path in weight_paths(artefact):
        sums = {sha256(path, fresh=True), weights.state(path, full=True).sha256}
        sums |= ({overlaid.get(path.name)} | checked.get(path.resolve(), set())) - {None}
        if len(sums) > 1:
            raise UserError(
                f"{path} is not what {artefact} was made and checked with: its bytes are others; "
                "restore the file, or make and check the graph again"
            )


def check_passed(artefact: Path, digest: str | None = None, provider: Provider | None = "cpu") -> bool:
    """Whether `pipeline check` has passed on this very artefact and on the weights that are there now.

    Args:
        artefact: a graph or an engine.
        digest: its SHA-256, where it is known.
        provider: that a graph was checked on; None for any.
    """
    if provider is None:
        return any(check_passed(artefact, digest, one) for one in PROVIDERS)
    result = result_of(artefact, "check", provider)
    record = records.read_if_valid(CheckRecord, result)
    if record is None or not record.passed or record.sha256 != (digest or sha256(artefact)):
        return False
    if record.files is None:
        log.warning("%s is of an older version, which did not look at the weights' content: no check", result)
        return False
    own = artefact.resolve().parent
    for file in record.files:
        path = resolved(file.file, result)
        # A reference that is gone contradicts nothing; what the artefact itself reads must be there.
        is_judged = path.exists() or path.resolve().parent == own
        if is_judged and not weights.is_same(file, path):
            log.info("%s has changed since %s was checked", path, artefact)
            return False
    return True
