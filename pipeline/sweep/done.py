"""Whether a job is done already: its outputs are there, match their inputs by digest, and were made with these settings.

A stage asks itself the same and does nothing where it is so; asked here, it costs no process. What cannot be told is not done.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.calib import adapters, similarity
from pipeline.engines import builder
from pipeline.graphs import graphfile
from pipeline.models import identity
from pipeline.models.checkpoint import open_checkpoint
from pipeline.sweep.jobs import Job
from pipeline.sweep.recipe import Recipe
from pipeline.types import UserError


def is_done(job: Job, recipe: Recipe) -> bool:
    """Whether running the job would find nothing to do."""
    if job.inline:
        return True
    try:
        return all(path.is_file() for path in job.outputs) and _TELL[job.stage](job, recipe)
    except (
        UserError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # a file that is not what it should be is no result
        return False


def digest(artefact: Path) -> str:
    """The SHA-256 of a graph or an engine; an engine's is believed, its gigabytes are hashed by the stage that runs it.

    Raises:
        UserError: it is missing or not what its sidecar says.
    """
    return str(store.read_sidecar(artefact, quick=artefact.suffix == ".plan")["sha256"])


def _export(job: Job, _: Recipe) -> bool:
    """A base: of this checkpoint, by these tools. A variant: cut from the base that is there, with the adapter that is there."""
    path = job.outputs[0]
    record, folder = store.read_sidecar(path), path.parent
    if not job.inputs:
        if record["contract"] != "authored":
            return True
        found = identity.refuse_changed(open_checkpoint(folder))
        now = (
            found.identity,
            store.sha256(folder / "config.json"),
            identity.tokenizer_digest(folder),
            graphfile.tools(),
        )
        return (folder / store.SOURCE).is_file() and now == tuple(
            record[k] for k in ("weights", "config", "tokenizer", "tools")
        )
    if record.get("adapter"):
        variant = store.variant_of(record)
        trained = adapters.read(open_checkpoint(folder), variant.skip, record["adapter"])[1]
        plain, healed = store.graph_path(folder, replace(variant, adapter=None)), store.healed_weights(path)
        fresh = healed is not None and adapters.merged_from(healed) == trained["sha256"]
        return fresh and record["base"]["sha256"] == digest(plain)
    return bool(record["base"]["sha256"] == digest(job.inputs[0]))


def _calibrate(job: Job, recipe: Recipe) -> bool:
    given = recipe.calibrate
    record = store.read_json(job.outputs[0])
    similarity.of_checkpoint(store.graphs_dir(job.model))  # of these weights, arrays whole
    wanted = {"wanted": given.samples, "length": given.length, "buckets": given.buckets, "runner": "torch"}
    return _same(record, wanted) and _from(record["texts"], given.texts, given.dataset)


def _from(told: dict[str, Any], files: tuple[Path, ...], dataset: str | None) -> bool:
    """Whether a text is the one that was asked for."""
    if files:
        return bool(told["from"] == [str(file) for file in files])
    return (
        bool(told["from"] == dataset) if dataset else str(told["from"]).startswith("English text of CPython")
    )


def _select(job: Job, _: Recipe) -> bool:
    record = store.read_json(job.outputs[0])
    return _same(record, {"kind": job.cell.kind, "select": job.cell.select}) and isinstance(
        record["skip"], str
    )


def _check(job: Job, _: Recipe) -> bool:
    return store.check_passed(job.inputs[0], digest(job.inputs[0]))


def _build(job: Job, recipe: Recipe) -> bool:
    record = store.read_sidecar(job.outputs[0], quick=True)
    graph, given = job.inputs[0], recipe.build
    wanted = {
        "graph": {"file": graph.name, "sha256": digest(graph)},
        "backend": given.backend,
        "targets": [given.target],
        "ranges": builder.ranges(graph.parent, given.batch, given.length, given.past),
        "stripped": False,
    }
    return _same(record, wanted)


def _score(job: Job, recipe: Recipe) -> bool:
    held = store.read_json(job.outputs[0])
    given = recipe.score
    data = given.data or (Path(os.environ["PIPELINE_DATA"]) if os.environ.get("PIPELINE_DATA") else None)
    wanted = {"sha256": digest(job.inputs[0]), "limit": given.limit_of(job.task or ""), "num_fewshot": None}
    rows = [source for splits in held["data"].values() for source in splits.values()]
    proven = held["pipeline"]["checked"] or recipe.unchecked
    return _same(held["pipeline"], wanted) and proven and all(_same_rows(source, data) for source in rows)


def _same_rows(source: dict[str, Any], data: Path | None) -> bool:
    """Whether the rows of a result are still those that would be read: the file unchanged, and from the folder asked for."""
    file = Path(source["file"])
    if not file.is_file():  # of the hub
        return data is None
    own = "benchmarks" in file.parts or (data is not None and file.resolve().is_relative_to(data.resolve()))
    return own and store.sha256(file) == source["sha256"]


def _bench(job: Job, recipe: Recipe) -> bool:
    held, given = store.read_json(job.outputs[0]), recipe.bench
    told = held["conditions"]
    wanted = {"sequences": given.sequences, "batch": given.batch, "checked": not recipe.unchecked}
    lengths = {row["length"] for row in held["rows"] if row["kind"] == "artefact"}
    threads = given.threads in (0, told["threads"])
    return (
        held["sha256"] == digest(job.inputs[0])
        and _same(told, wanted)
        and threads
        and set(given.lengths) <= lengths
    )


def _heal(job: Job, recipe: Recipe) -> bool:
    given, graph = recipe.heal, job.inputs[0]
    variant = store.variant_of(store.read_sidecar(graph))
    _, record = adapters.read(open_checkpoint(graph.parent), variant.skip, given.name)
    wanted = given.model_dump(
        mode="json", include={"loss", "steps", "batch", "length", "rank", "lr", "quantize", "seed"}
    )
    wanted["targets"] = list(given.targets)
    return _same(record["settings"], wanted) and _from(record["texts"], given.texts, given.dataset)


def _same(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in wanted.items())


_TELL: dict[str, Callable[[Job, Recipe], bool]] = {
    "export": _export, "calibrate": _calibrate, "select": _select, "check": _check, "build": _build, "score": _score,
    "bench": _bench, "heal": _heal,
}  # fmt: skip
