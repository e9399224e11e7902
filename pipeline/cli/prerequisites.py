"""Stages that a command runs before its own: the fp16 twin before a build, the check before a measurement.

Stages never import each other; the commands chain them, here. Each stage is imported where it is used.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.cli import arguments
from pipeline.store.records import Score
from pipeline.types import BASE, CPU, Devices, Provider, SkipSet, UserError

if TYPE_CHECKING:
    from pipeline.evals.score.settings import ScoreSettings
    from pipeline.models.checkpoint import Checkpoint


def has_gpu() -> bool:
    """Whether engines are taken by default: they run on a GPU only."""
    from pipeline.runtime import tensorrt_library

    return tensorrt_library.gpu_target() is not None


# ---- graphs ---------------------------------------------------------------------------------------------


def prove(source: Checkpoint) -> None:
    """Refuses a checkpoint that no graph can be written of, before it is copied."""
    from pipeline.graphs import export as stage
    from pipeline.models import drop_lists

    stage.prove(source, "fp32", drop_lists.of(source))


@cache
def _fp16_base(folder: Path, quantisation: str | None, _directory: Path) -> Path:
    """The fp16 base graph of a checkpoint, looked for once a command.

    Args:
        folder: of the checkpoint.
        quantisation: of its weights.
        _directory: the current one, by which a relative folder is another.
    """
    return _exported(folder, BASE, quantisation)


def _exported(folder: Path, skip: SkipSet, quantisation: str | None) -> Path:
    """A variant's fp16 graph, its weights quantised likewise."""
    from pipeline.graphs import export as stage
    from pipeline.models import checkpoint
    from pipeline.models.quantisation.names import Quantisation

    form = Quantisation.parse(quantisation) if quantisation else None
    return stage.export(checkpoint.open_checkpoint(folder), "fp16", skip, form)


def fp16_twin(path: Path) -> Path:
    """The same variant in fp16, of the fp16 base where there is one; optimum's graphs stay as they are."""
    from pipeline.graphs import variants as surgery

    sidecar = store.graph_sidecar(path)
    variant = sidecar.as_variant()
    if variant.precision == "fp16" or sidecar.contract != "authored":
        return path
    if variant.skip and sidecar.base is None:  # the weights of what it leaves out are gone
        twin = _exported(path.parent, variant.skip, variant.quantisation)
    elif variant.compensation:
        base = _fp16_base(path.parent, variant.quantisation, Path.cwd())
        overlay = store.compensation_overlay(path)
        twin = surgery.compensate(base, variant.skip, overlay, variant.compensation)
    else:
        twin = surgery.cut(_fp16_base(path.parent, variant.quantisation, Path.cwd()), variant.skip)
    twin = surgery.graft(twin, store.overlays(path)[-1], variant.adapter) if variant.adapter else twin
    return surgery.cut_static(twin, variant.max_tokens) if variant.max_tokens else twin


def compensated(graph: Path, form: str) -> Path:
    """The variant's graph with what `pipeline compensate` fitted for it in the place of what it skips.

    Args:
        graph: the bare variant's.
        form: of the compensation.

    Raises:
        UserError: none was fitted, it was fitted to other weights, or its file was changed since.
    """
    from pipeline.calib.compensation import compensate as stage
    from pipeline.graphs import variants as surgery
    from pipeline.models import checkpoint

    base, folder = surgery.base_of(graph), graph.parent
    variant = replace(store.variant(graph), compensation=form)
    if store.graph_sidecar(base).contract != "authored":
        raise UserError(
            f"{graph} was exported elsewhere: `pipeline compensate` with --reference writes what it fitted"
        )
    overlay = store.overlay_path(folder, variant.name, variant.quantisation)
    command = f"`pipeline compensate {shlex.quote(str(graph))} --with {shlex.quote(form)}`"
    if not overlay.is_file() or not store.sidecar_path(overlay).is_file():
        raise UserError(f"{variant.skip.name} has no compensation {form!r:.40}; make it with {command}")
    record = stage.record_of(overlay)
    quantised = store.graph_sidecar(base).quantised
    is_of_weights = record.quantised == (quantised.sha256 if quantised else None)
    if record.contents != checkpoint.open_checkpoint(folder).contents or not is_of_weights:
        raise UserError(f"{overlay} was fitted to other weights; make it again with {command}")
    is_of_it = (record.variant, record.settings.form) == (variant.skip.name, form)
    if not is_of_it or record.sha256 != store.sha256(overlay):
        raise UserError(f"{overlay} is not what its record describes; make it again with {command}")
    return surgery.compensate(base, variant.skip, overlay, form)


def healed(graph: Path, adapter: str) -> Path:
    """The variant's graph with an adapter merged in: only the tensors that it touched are written anew."""
    from pipeline.calib import adapters
    from pipeline.graphs import variants as surgery
    from pipeline.models import checkpoint

    variant = store.variant(graph)
    with arguments.busy(f"merging adapter {adapter} of {variant.name}"):
        tensors = adapters.merge(checkpoint.open_checkpoint(graph.parent), variant, adapter)
        return surgery.graft(graph, tensors, adapter)


def merged(paths: list[Path], unchecked: bool, provider: Provider = "cpu") -> Path:
    """One graph of all these graphs.

    Args:
        paths: graphs of one base.
        unchecked: also those that have passed no check.
        provider: that they will be scored on.

    Raises:
        UserError: one is an engine, or has passed no check.
    """
    from pipeline.evals import passed
    from pipeline.graphs import merge as stage

    for path in paths:
        if path.suffix != ".onnx":
            raise UserError(f"--together takes graphs (.onnx), and {path} is none")
        if not unchecked:
            passed.require_check(path, provider=provider)
    with arguments.busy(f"merging {len(paths)} graphs"):
        return stage.merge(paths)


def optimum_twins(paths: list[Path]) -> dict[Path, Path]:
    """The same variants, cut out of the graph that optimum exports of the same checkpoint."""
    from pipeline.graphs import export as stage
    from pipeline.graphs import variants as surgery

    return {path: surgery.cut(stage.optimum_base(path.parent), store.variant(path).skip) for path in paths}


# ---- checks and scores ----------------------------------------------------------------------------------


def checked(paths: list[Path], unchecked: bool, devices: Devices = CPU) -> list[Path]:
    """The same paths, after a check of each and of its base where they have not passed one.

    Args:
        paths: graphs and engines.
        unchecked: leave the checks out.
        devices: that they are checked on.
    """
    from pipeline.evals.bench import contestants

    for path in [] if unchecked else contestants.with_bases(paths):
        if not store.check_passed(path, provider=devices.graphs):
            from pipeline.evals.check import (
                check as stage,  # PyTorch: seconds, where nothing is to be checked
            )

            with arguments.busy(f"checking {path} first"):
                stage.check(path, devices=devices)
    return paths


def known_tasks(tasks: str, paths: list[Path]) -> list[str]:
    """The benchmarks' names, each looked up in the projects of these artefacts."""
    from pipeline.evals.score import benchmarks

    names = benchmarks.check_names(tasks)
    for project in dict.fromkeys(map(store.Project.of, paths)):
        for name in names:
            benchmarks.find(name, project=project)
    return names


def scored(paths: list[Path], tasks: str | None, settings: ScoreSettings) -> list[Score]:
    """The scores that exist of the artefacts, once the benchmarks that are named have been run on them."""
    from pipeline.evals.score import results

    if tasks:
        from pipeline.evals.score import score as stage

        stage.score(paths, known_tasks(tasks, paths), settings)
    return [score for path in paths for score in results.scores_of(path, settings.provider)]


def scored_together(
    paths: list[Path], tasks: str | None, provider: Provider = "cpu"
) -> dict[Path, list[Score]]:
    """The scores of graphs on all rows; those that are missing are measured in one merged graph.

    Args:
        paths: graphs of one base that have passed their checks.
        tasks: benchmarks, with commas; None for no scores.
        provider: of ONNX Runtime.

    Returns:
        Of each graph those of the benchmarks in the order of their names; in the place of a mean of
        benchmarks those that it is of.

    Raises:
        UserError: no such benchmark, or its rows cannot be used.
    """
    if tasks is None:
        return {path: [] for path in paths}
    from pipeline.evals.score import benchmarks, results
    from pipeline.evals.score import score as stage

    names, project = known_tasks(tasks, paths), store.Project.of(paths[0])
    wanted = {"protocol": "lm-eval", "limit": None, "checked": True}

    def kept(path: Path) -> dict[str, Score]:
        return {one.benchmark: one for one in results.scores_of(path, provider) if one.matches(wanted)}

    scores = {path: kept(path) for path in paths}
    lacking = [
        name
        for name in names
        if any(one not in own for own in scores.values() for one in benchmarks.with_members([name], project))
    ]
    if lacking:
        settings = stage.ScoreSettings(provider=provider)
        stage.score(paths, lacking, settings, merged(paths, False, provider))
        scores = {path: kept(path) for path in paths}
    every = [benchmarks.find(name, project=project) for name in benchmarks.with_members(names, project)]
    single = [benchmark.name for benchmark in every if not benchmark.members]
    return {path: [own[name] for name in single] for path, own in scores.items()}
