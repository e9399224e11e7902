"""Whether a job is done: its outputs are there, match their inputs by digest, and have these settings.

A stage decides the same and does nothing where it is so; decided here, it costs no process. A file that
cannot be read is no result: the job is not done.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline import store
from pipeline.calib import adapters, similarity
from pipeline.engines import profiles
from pipeline.graphs import graphfile
from pipeline.models import identity, provenance, texts
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.gguf import parts
from pipeline.store import records
from pipeline.store.records import DataSource, GraphRecord, TextSource
from pipeline.sweep.jobs import Job
from pipeline.sweep.sections import Recipe, TextSection
from pipeline.types import BASE, UserError, Variant

HEAL_SETTINGS = {"loss", "steps", "batch", "length", "rank", "lr", "quantize", "seed", "targets"}
"""Those of a recipe that an adapter's record must have; the rest is its name and its text."""
_ON: dict[str, object] = {"device": "cpu"}
"""Of records that name a device: the jobs of a sweep compute on the CPU."""


def is_done(job: Job, recipe: Recipe) -> bool:
    """Whether running the job would find nothing to do."""
    if job.inline:
        return True
    try:
        return all(path.is_file() for path in job.outputs) and _STAGES[job.stage](job, recipe)
    except UserError:
        return False


def digest(artefact: Path) -> str:
    """The SHA-256 of a graph or an engine.

    An engine's is taken from its sidecar: the stage that runs it hashes its gigabytes.

    Raises:
        UserError: it is missing or not what its sidecar says.
    """
    record = store.sidecar(artefact, quick=artefact.suffix == ".plan")
    store.refuse_other_weights(artefact, record)
    return record.sha256


def _export(job: Job, _: Recipe) -> bool:
    path = job.outputs[0]
    record = store.graph_sidecar(path)
    if not job.inputs:
        return _is_base_current(path.parent, record)
    if record.adapter:
        return _is_healed_current(path, record)
    return record.base is not None and record.base.sha256 == digest(job.inputs[0])


def _is_base_current(folder: Path, record: GraphRecord) -> bool:
    """Whether a base was written for the checkpoint that is there, by these tools."""
    if record.contract != "authored":
        return True
    if record.quantisation:  # cut of the base with the checkpoint's own weights
        plain = folder / record.base.file if record.base else None
        if plain is None or not record.base or record.base.sha256 != digest(plain):
            return False
        return _is_base_current(folder, store.graph_sidecar(plain))
    checkpoint = identity.refuse_changed(open_checkpoint(folder))
    if identity.outdated(checkpoint):
        return False
    wanted = {
        "weights": checkpoint.identity,
        "config": store.sha256(folder / "config.json"),
        "tokenizer": identity.tokenizer_digest(folder),
        "tools": graphfile.tools(),
    }
    return (folder / store.SOURCE).is_file() and record.matches(wanted)


def _is_healed_current(path: Path, record: GraphRecord) -> bool:
    """Whether a healed graph was cut from the graph that is there, with the adapter that is there."""
    variant = record.as_variant()
    trained = adapters.read(open_checkpoint(path.parent), variant, str(variant.adapter))[1]
    plain, merged = store.graph_path(path.parent, replace(variant, adapter=None)), store.overlays(path)[-1]
    is_merged = adapters.is_merged(merged, trained)
    return is_merged and record.base is not None and record.base.sha256 == digest(plain)


def _calibrate(job: Job, recipe: Recipe) -> bool:
    settings = recipe.calibrate
    record = similarity.of_checkpoint(store.Project().graphs(job.model)).record
    wanted = {
        "wanted": settings.samples,
        "length": settings.length,
        "buckets": settings.buckets,
        "runner": "torch",
    }
    return record.matches(wanted) and _is_same_text(record.texts, settings, job.outputs[0])


def _is_same_text(source: TextSource, settings: TextSection, record: Path) -> bool:
    """Whether the text of a record is the one that the recipe names."""
    if settings.texts:
        paths = [source.origin] if isinstance(source.origin, str) else source.origin
        files = [store.resolved(path, record).resolve() for path in paths]
        return files == [file.resolve() for file in settings.texts]
    return source.origin == (settings.dataset or texts.OWN_NAME)


def _select(job: Job, _: Recipe) -> bool:
    record = records.read(records.ChoiceRecord, job.outputs[0])
    return record.matches({"kind": job.cell.kind, "select": job.cell.select, **_ON})


def _check(job: Job, _: Recipe) -> bool:
    return store.check_passed(job.inputs[0], digest(job.inputs[0]))


def _build(job: Job, recipe: Recipe) -> bool:
    graph, settings = job.inputs[0], recipe.build
    wanted = {
        "graph": {"file": graph.name, "sha256": digest(graph)},
        "backend": settings.backend,
        "targets": [settings.target],
        "ranges": profiles.ranges(graph.parent, settings.batch, settings.length, settings.past).plain(),
        "stripped": False,
    }
    is_wanted = store.sidecar(job.outputs[0], quick=True).matches(wanted)
    return is_wanted and store.contents(job.outputs[0]) == store.contents(graph)


def _score(job: Job, recipe: Recipe) -> bool:
    record, settings = records.read(records.ScoreRecord, job.outputs[0]), recipe.score
    data = settings.data or (Path(os.environ["PIPELINE_DATA"]) if os.environ.get("PIPELINE_DATA") else None)
    wanted = {
        "sha256": digest(job.inputs[0]),
        "contents": store.contents(job.inputs[0]),
        "limit": settings.limit_of(job.task or ""),
        "num_fewshot": None,
    }
    rows = [source for splits in record.data.values() for source in splits.values()]
    may_count = record.pipeline.checked or recipe.unchecked
    return (
        record.pipeline.matches(wanted)
        and may_count
        and all(_is_same_data(row, data, job.outputs[0]) for row in rows)
    )


def _is_same_data(source: DataSource, data: Path | None, record: Path) -> bool:
    """Whether the rows of a result are those that would be read now."""
    file = store.resolved(source.file, record)
    if not file.is_file():  # of the hub
        return data is None
    own = "benchmarks" in file.parts or (data is not None and file.resolve().is_relative_to(data.resolve()))
    return own and store.sha256(file) == source.sha256


def _bench(job: Job, recipe: Recipe) -> bool:
    record, settings = records.read(records.BenchRecord, job.outputs[0]), recipe.bench
    wanted = {
        "sequences": settings.sequences,
        "batch": settings.batch,
        "checked": not recipe.unchecked,
    }
    lengths = {row.length for row in record.rows if row.kind == "artefact"}
    return (
        record.sha256 == digest(job.inputs[0])
        and record.conditions.matches(wanted)
        and settings.threads in (0, record.conditions.threads)
        and set(settings.lengths) <= lengths
    )


def _heal(job: Job, recipe: Recipe) -> bool:
    settings, graph = recipe.heal, job.inputs[0]
    _, record = adapters.read(open_checkpoint(graph.parent), store.variant(graph), settings.name)
    wanted = settings.model_dump(mode="json", include=HEAL_SETTINGS) | {"precision": "fp32"}
    return (
        record.settings.matches(wanted)
        and record.matches(_ON)
        and _is_same_text(record.texts, settings, job.outputs[0])
    )


def _compensate(job: Job, recipe: Recipe) -> bool:
    """Whether an overlay has the recipe's settings, and the graph reads it and was cut from this base."""
    (path, overlay), settings = job.outputs, recipe.compensate
    fit = records.read(records.CompensationRecord, store.sidecar_path(overlay))
    graph = store.graph_sidecar(path)
    checkpoint = open_checkpoint(path.parent)
    wanted = {
        "weights": checkpoint.identity,
        "contents": checkpoint.contents,
        "sha256": store.sha256(overlay),
        "quantised": graph.quantised.sha256 if graph.quantised else None,
        **_ON,
    }
    fitted = {"form": graph.compensation, **settings.model_dump(include={"samples", "length", "refit"})}
    base = store.graph_path(
        path.parent, Variant(graph.model, BASE, graph.precision, quantisation=graph.quantisation)
    )
    return (
        fit.matches(wanted)
        and fit.settings.matches(fitted)
        and _is_same_text(fit.texts, settings, store.sidecar_path(overlay))
        and store.compensation_overlay(path) == overlay
        and graph.base is not None
        and graph.base.sha256 == digest(base)
    )


def _ship(job: Job, recipe: Recipe) -> bool:
    """Whether a file for other engines was made of this graph and its weights, in the form of the recipe."""
    graph, file = job.inputs[0], job.outputs[0]
    digest(graph)
    if file.suffix != ".gguf":
        source = records.read_object(file).get(provenance.NAME)
        return isinstance(source, dict) and source.get(provenance.DIGEST) == provenance.digest(graph, "hf")
    fields = parts.read(file).fields
    form, known = (fields.get(f"{provenance.NAME}.{key}") for key in (provenance.FORM, provenance.DIGEST))
    return recipe.ship.type in (None, form) and known == provenance.digest(graph, str(form))


_STAGES: dict[str, Callable[[Job, Recipe], bool]] = {
    "export": _export,
    "calibrate": _calibrate,
    "select": _select,
    "check": _check,
    "build": _build,
    "score": _score,
    "bench": _bench,
    "heal": _heal,
    "compensate": _compensate,
    "ship": _ship,
}
