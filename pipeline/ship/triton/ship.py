"""Stage: graphs and plans → a Triton model repository.

A variant becomes two models: NAME, its tensors as they are, and NAME_generate, text in and text out.
Everything is written beside the repository first and renamed into it. SHIP.json says what belongs to it;
`triton/install.py` says in which order.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.evals import passed
from pipeline.graphs import graphfile
from pipeline.models import identity, tokenizer
from pipeline.ship.triton import install, repository, versions
from pipeline.ship.triton.versions import Place, Shippable
from pipeline.store.records import EngineRecord, MergedRecord, ShippedModel, ShipRecord, ShipSettings
from pipeline.types import UserError, file_name

log = logging.getLogger(__name__)
MAX_NAME = 190
"""Bytes of NAME that stand whole; NAME_generate must be a file's name, too."""


@dataclass(frozen=True, slots=True)
class Shipment:
    """What one call of `ship` did.

    Attributes:
        record: SHIP.json as it stands now.
        shipped: (name, version) of every artefact of the call.
    """

    record: ShipRecord
    shipped: tuple[tuple[str, int], ...]

    def plain(self) -> dict[str, Any]:
        """SHIP.json and what is new in it, as JSON takes them."""
        return {**self.record.plain(), "shipped": [list(one) for one in self.shipped]}

    def described(self) -> str:
        """What was shipped, for a person."""
        lines = []
        for name, number in self.shipped:
            one = self.record.models[name].versions[str(number)]
            size = sum(file.bytes for file in one.files.values()) / 1e6
            lines.append(
                f"{name} and {name}{repository.ENDING}, version {number}: {one.kind}, {size:.0f} MB, "
                f"check {one.check}"
            )
        return "\n".join(lines)


def settings_of(rows: int, cache_tokens: int, queue: int) -> ShipSettings:
    """How NAME_generate runs, from the options of the command.

    Raises:
        UserError: a number is out of range.
    """
    for option, value in (("--rows", rows), ("--cache-tokens", cache_tokens), ("--queue", queue)):
        if value < 1:
            raise UserError(f"{option} {value} is not above 0")
        if value >= 1 << 31:
            raise UserError(f"{option} {value} is too large")
    return ShipSettings(rows=rows, cache_tokens=cache_tokens, queue=queue)


def ship(
    artefacts: list[Path],
    folder: Path,
    name: str | None = None,
    unchecked: bool = False,
    settings: ShipSettings | None = None,
) -> Shipment:
    """Writes the artefacts into the repository, each as the next version of its name.

    An artefact that is there already stays as it is.

    Args:
        artefacts: graphs and plans of variants.
        folder: the model repository; made where it is missing.
        name: of the model; with several artefacts the beginning of their names.
        unchecked: take artefacts that have passed no check, and record that.
        settings: how NAME_generate runs.

    Raises:
        UserError: an artefact cannot be served, or the folder holds something else. Nothing is changed then.
    """
    settings = settings or ShipSettings()
    paths = {_name(path, name, len(artefacts) > 1): path for path in artefacts}
    if len(paths) < len(artefacts):
        raise UserError("two of these artefacts would get the same name; ship them one by one with --name")
    accepted = {name: _accepted(path, unchecked) for name, path in paths.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with store.lock(folder, make=False), store.staging(folder) as staging:
        record = repository.read_or_new(folder)
        shipment = _stage(record, accepted, settings, staging, folder / repository.RECORD)
        return replace(shipment, record=install.install(staging, folder, shipment.record))


def _name(path: Path, name: str | None, several: bool) -> str:
    """NAME of an artefact: letters of ASCII, digits and `_.-`, because it is a part of URLs."""
    variant = store.variant(path, quick=True)
    stem = variant.model if name is None else store.plain_name(name)
    full = file_name(f"{stem}-{variant.name}" if several or name is None else stem, MAX_NAME)
    letters = "".join(c for c in unicodedata.normalize("NFKD", full) if not unicodedata.combining(c))
    triton_name = file_name(re.sub(r"[^A-Za-z0-9_.-]", "_", letters), MAX_NAME)
    if triton_name.endswith(repository.ENDING):
        raise UserError(f"--name {triton_name} ends in _generate, which is the text model's own ending")
    return store.plain_name(triton_name)


def _accepted(path: Path, unchecked: bool) -> Shippable:
    """The artefact, after a check that it can be served.

    Raises:
        UserError: it cannot be served, or has passed no check.
    """
    variant, sidecar = store.variant(path, quick=True), store.sidecar(path, quick=True)
    assert not isinstance(sidecar, MergedRecord), "store.variant refuses it"
    if isinstance(sidecar, EngineRecord) and sidecar.stripped:
        raise UserError(f"{path} was built without its weights; build it again without --strip-weights")
    passed.variants(path, unchecked, provider=None)  # hashes the artefact
    folder = store.checkpoint_folder(path)
    graph = folder / sidecar.graph.file if isinstance(sidecar, EngineRecord) else path
    if isinstance(sidecar, EngineRecord) and store.sidecar(graph).sha256 != sidecar.graph.sha256:
        raise UserError(f"{graph} is not the graph that {path} was built from; build the engine again")
    store.refuse_damaged(graph)
    identity.refuse_other_sums(folder, store.weights.states(store.weight_paths(graph), full=True))
    if not _has_cache(graph) and not passed.has_no_attention(graph):
        raise UserError(f"{path} has no cache to generate with; make it with `pipeline export`")
    check = "passed" if store.check_passed(path, sidecar.sha256, provider=None) else "not checked"
    return Shippable(path, sidecar, variant, graph, tokenizer.prompts(folder), check)


def _has_cache(graph: Path) -> bool:
    return any(map(graphfile.is_cache, graphfile.load(graph).graph.inputs))


def _stage(
    record: ShipRecord, artefacts: Mapping[str, Shippable], settings: ShipSettings, staging: Path, file: Path
) -> Shipment:
    """Writes the artefacts into the staging folder; `file` is where SHIP.json will be."""
    shipped = []
    for name, artefact in artefacts.items():
        model = record.models.get(name, ShippedModel(generate=name + repository.ENDING))
        number = _present(model, artefact, settings)
        if number is not None:
            log.info("%s version %s is this very artefact; nothing to do", name, number)
        else:
            number = _next_number(name, model, artefact)
            version = versions.write(artefact, Place(staging, file, name, number), settings)
            model = model.replaced(versions={**model.versions, str(number): version})
            record = record.replaced(models={**record.models, name: model})
        shipped.append((name, number))
    return Shipment(record, tuple(shipped))


def _present(model: ShippedModel, artefact: Shippable, settings: ShipSettings) -> int | None:
    """The newest version that is this very artefact with these settings."""
    contents = store.contents(artefact.path)
    wanted = {"sha256": artefact.sidecar.sha256, "contents": contents, "settings": settings.plain()}
    return max((int(number) for number, one in model.versions.items() if one.matches(wanted)), default=None)


def _next_number(name: str, model: ShippedModel, artefact: Shippable) -> int:
    """The number of the next version.

    Raises:
        UserError: the model's versions are of another kind; one config.pbtxt cannot serve both.
    """
    if others := {one.kind for one in model.versions.values()} - {artefact.kind}:
        raise UserError(
            f"{name} holds versions of another kind ({others.pop()}), and {artefact.path} is not; "
            f"give it another --name"
        )
    return max(map(int, model.versions), default=0) + 1
