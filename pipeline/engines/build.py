"""Stage: a graph → a TensorRT engine. Precision comes with the graph, weights from the checkpoint's files."""

from __future__ import annotations

import contextlib
import logging
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.engines import layout, lint, profiles, room
from pipeline.engines.builder import Builder
from pipeline.engines.layout import Layout
from pipeline.engines.settings import DEFAULTS, BuildSettings, choose_targets
from pipeline.graphs import graphfile
from pipeline.runtime import tensorrt_library
from pipeline.runtime.tensorrt_library import Profile
from pipeline.store.records import BuildFigures, EngineRecord, FileState, GraphRecord, MergedRecord, Ranges
from pipeline.types import UserError, Variant, precision_name

log = logging.getLogger(__name__)
_TIMING_CACHE = "timing.cache"


@dataclass(frozen=True, slots=True)
class _Job:
    """One build.

    Attributes:
        graph: what is built.
        path: of the plan.
        wanted: fields of its sidecar that say what it must be; where they match, nothing is built.
        targets: of the plan.
        ranges: of B, S, P and K.
        decomposed: attention is taken apart: there is no fused kernel for FP32.
        stripped: without weights.
        files: the weights as they are before the build, every byte of them.
    """

    graph: Path
    path: Path
    wanted: Mapping[str, Any]
    targets: list[str]
    ranges: Ranges
    decomposed: bool
    stripped: bool
    files: tuple[FileState, ...]


def build(graph: Path, settings: BuildSettings = DEFAULTS) -> Path:
    """Writes engines/<model>/<variant>/<backend>-<targets>-<precision>.plan and its sidecar, or finds it.

    Raises:
        UserError: the graph is not for TensorRT, the backend is missing, the machine lacks memory or disk, or
            parser or builder fail. No plan is left then.
    """
    record = store.sidecar(graph)
    if isinstance(record, EngineRecord):
        raise UserError(f"{graph} is no graph but an engine; name the graph that it was built from")
    _refuse_precision(graph, record, settings.keep_precision)
    builder = Builder(settings.backend)
    job = _plan_job(graph, record, builder, settings)
    if not settings.force and _is_current(job):
        _refer_to(job.path, graph.parent)
        log.info("%s is there and matches; nothing to do", job.path)
        return job.path
    _refuse_others(job)
    profiles.log_cut(job.ranges, settings.length, settings.past, job.wanted.get("max_tokens"))
    lint.require(graphfile.load(graph), graph, job.decomposed)
    laid_out = _layout(job, settings.backend)
    with store.lock(job.path.parent):
        store.sweep_temporaries(job.path.parent)
        log.info("building %s from %s", job.path, graph)
        _write(builder, job, laid_out)
    return job.path


def _refuse_precision(graph: Path, record: GraphRecord | MergedRecord, keep_precision: bool) -> None:
    """An fp32 engine is slow: the user must have said that it is wanted."""
    if record.precision == "fp16" or keep_precision:
        return
    authored = record.contract == "authored"
    half = precision_name("fp16", record.quantisation)
    mend = f"export it with --precision {half}" if authored else "export it in fp16 with optimum"
    raise UserError(
        f"{graph} is {record.precision_name}, and engines are built from fp16 graphs: {mend}, "
        "or pass --keep-precision"
    )


def _plan_job(
    graph: Path, record: GraphRecord | MergedRecord, builder: Builder, settings: BuildSettings
) -> _Job:
    """What there is to build, and where it goes."""
    targets = choose_targets(builder, settings.targets)
    if settings.strip_weights and tensorrt_library.gpu_target() is None:
        raise UserError(
            f"--strip-weights needs a GPU: {settings.backend} cannot strip a plan on a CPU; "
            "leave it out to build a whole plan"
        )
    built = profiles.ranges(graph.parent, settings.batch, settings.length, settings.past)
    places = record.max_tokens if isinstance(record, GraphRecord) else None
    if places is not None:
        built = profiles.within_places(built, places)
    identity = _identity(graph, record)
    wanted = {
        "artefact": "engine",
        **identity,
        "graph": {"file": graph.name, "sha256": record.sha256},
        "weights": record.weights,
        "tokenizer": record.tokenizer,
        "backend": settings.backend,
        "backend_version": builder.version,
        "targets": targets,
        "ranges": built.plain(),
        "stripped": settings.strip_weights,
    }
    form = Variant(record.model, head=record.head, max_tokens=places).form
    names = (record.model, identity["variant"], settings.backend, "+".join(targets))
    path = store.Project.of(graph).engine(*names, record.precision_name + form)
    files = store.weights.states(store.weight_paths(graph), full=True)
    decomposed = record.precision == "fp32"
    return _Job(graph, path, wanted, targets, built, decomposed, settings.strip_weights, files)


def _identity(graph: Path, record: GraphRecord | MergedRecord) -> dict[str, Any]:
    """What an engine's sidecar says of what it computes: a variant, or the variants of a merged graph."""
    if isinstance(record, GraphRecord):
        return store.records.variant_fields(record.as_variant())
    return {
        "model": record.model,
        "variant": graph.name.removesuffix(f".{record.precision_name}.onnx"),
        "precision": record.precision,
        "quantisation": record.quantisation,
        "head": record.head,
        "variants": record.variants,
    }


def _is_current(job: _Job) -> bool:
    """Whether the plan is there, of this graph, these settings and every byte of these weights."""
    is_wanted = store.is_current(job.path, job.wanted)
    return is_wanted and store.contents(job.path) == store.contents(job.graph)


def _refuse_others(job: _Job) -> None:
    """Refuses to write over the engine of another checkpoint whose folder has the same name."""
    try:
        record = store.engine_sidecar(job.path, quick=True)
    except UserError:  # none, or half of one
        return
    other = store.resolved(record.folder, job.path)
    if other.is_dir() and other.resolve() != job.graph.parent.resolve():
        raise UserError(
            f"{job.path} is the engine of {other}, and {job.graph.parent} has the same name; "
            "move the engine away, or rename one of the folders"
        )


def _refer_to(path: Path, folder: Path) -> None:
    """Writes the checkpoint's folder into the sidecar of a plan that matches, where it is another one now."""
    record = store.engine_sidecar(path, quick=True)
    if record.folder != (place := store.relative(folder, path)):
        store.write_sidecar(path, record.replaced(folder=place).plain())


def _layout(job: _Job, backend: str) -> Layout | None:
    """The graph as TensorRT-RTX reads it, after a check that there is room for the build.

    TensorRT itself takes the file: what it copies was not measured. So does a plan without weights, into
    which they are put back by their names in the graph.
    """
    if backend != "tensorrt-rtx" or job.stripped:
        return None
    laid_out = layout.laid_out(graphfile.load(job.graph))
    if name := layout.shared_blocks(laid_out.model):  # ends the process, without a word
        raise UserError(
            f"several products of {job.graph} read {name}, 4 bits, at which TensorRT-RTX crashes; "
            "build the variants one by one, or merge their fp16 graphs"
        )
    room.require(job.path, room.needs(laid_out.weight_bytes, laid_out.merged_bytes, laid_out.stacked_bytes))
    return laid_out


def _write(builder: Builder, job: _Job, laid_out: Layout | None) -> None:
    """Parses, builds, writes plan, sidecar and log; on failure the log alone."""
    log_file = job.path.with_suffix(".log")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        plan = stack.enter_context(store.atomic(job.path))
        try:
            source = stack.enter_context(layout.written(laid_out, plan.parent)) if laid_out else None
            builder.parse(job.graph, job.decomposed, source)
            parsed = time.monotonic()
            shapes = profiles.profiles(builder.inputs(), job.ranges)
            builder.build(shapes, job.targets, job.stripped, _timing_cache(builder, job), plan)
        except UserError as error:
            raise UserError(f"{error}{_alternative(job)}; TensorRT's own log: {log_file}") from None
        finally:
            with store.atomic(log_file) as temporary:
                temporary.write_text("\n".join(builder.lines) + "\n", encoding="utf-8")
        if changed := store.weights.changed(job.files, job.graph.parent):
            raise UserError(f"{changed} was written to while {job.path} was built; run the command again")
    _write_sidecar(job, shapes, _figures(builder, parsed - started, time.monotonic() - parsed))


def _alternative(job: _Job) -> str:
    """What to build where a backend fails on quantised weights.

    TensorRT-RTX 1.7.1 builds every variant of them, and breaks off at most merged graphs (docs/notes.md).
    TensorRT proper was not tried, for lack of a GPU; its documentation (11, "Quantization Schemes") has
    blocks of 64 and 128 weights, of 4 bits alone, and heads here have 8.
    """
    if not job.wanted.get("quantisation"):
        return ""
    if job.wanted["backend"] == "tensorrt":
        return "; where TensorRT lacks these blocks, take --backend tensorrt-rtx, or the model's fp16 graph"
    merged = job.wanted.get("variants") is not None
    return "; build the variants one by one, or merge their fp16 graphs" if merged else ""


def _timing_cache(builder: Builder, job: _Job) -> Path | None:
    """Where TensorRT keeps the kernels that it timed, a file a model; TensorRT-RTX times none."""
    if builder.backend != "tensorrt":
        return None
    return store.Project.of(job.graph).engines(job.wanted["model"], _TIMING_CACHE)


def _figures(builder: Builder, parse_seconds: float, build_seconds: float) -> BuildFigures:
    layers, memory = builder.layers(), builder.memory()
    return BuildFigures(
        layers=layers,
        num_layers=sum(layers.values()),
        activation_bytes=memory.activations,
        weights_bytes=memory.weights,
        parse_seconds=round(parse_seconds, 3),
        build_seconds=round(build_seconds, 3),
        process_peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def _write_sidecar(job: _Job, shapes: tuple[Profile, ...], figures: BuildFigures) -> None:
    where = "on a CPU" if tensorrt_library.gpu_target() is None else "on a GPU"
    fields = {
        **job.wanted,
        "folder": store.relative(job.graph.parent, job.path),
        "files": [file.plain() for file in job.files],
        "profiles": shapes,
        "build": figures.plain(),
        "proven": f"parsed and built {where}; not run",
    }
    store.write_sidecar(job.path, fields)
