"""Stages that a command runs before its own: the fp16 twin before a build, the check before a measurement.

Stages never import each other; the command and the demo chain them, here. Each is imported where it is needed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import arguments, store
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.scoring.results import Score


def has_gpu() -> bool:
    """Whether engines are taken by default: they run on a GPU only."""
    from pipeline.backends import tensorrt

    return tensorrt.gpu_target() is not None


@cache
def _fp16_base(folder: Path) -> Path:
    """The fp16 base graph of a checkpoint, made or found once a command."""
    from pipeline import checkpoint
    from pipeline import export as stage

    return stage.export_base(checkpoint.open_checkpoint(folder), "fp16")


def fp16_twin(path: Path) -> Path:
    """The same variant in fp16, cut from the fp16 base."""
    from pipeline import skip as surgery

    record = store.read_sidecar(path)
    variant = store.variant_of(record)
    if variant.precision == "fp16" or record["contract"] != "authored":
        return path
    return surgery.cut(_fp16_base(path.parent), variant.skip)


def checked(paths: list[Path], unchecked: bool) -> list[Path]:
    """The paths and their bases, each checked now where it has not passed: no number stands for an unchecked artefact."""
    from pipeline import bench
    from pipeline import compare as stage

    for path in [] if unchecked else bench.with_bases(paths):
        if not store.check_passed(path):
            with arguments.busy(f"checking {path} first"):
                stage.check(path)
    return paths


def merged(paths: list[Path], unchecked: bool) -> Path:
    """One graph of all these graphs, none of which is unchecked unless that is allowed.

    Raises:
        UserError: one is an engine, or has passed no check.
    """
    from pipeline import merge as stage

    for path in paths:
        if path.suffix != ".onnx":
            raise UserError(f"--together takes graphs (.onnx), and {path} is none")
        if not unchecked and not store.check_passed(path):
            raise UserError(f"{path} has passed no check; run `pipeline check {path}`, or pass --unchecked")
    with arguments.busy(f"merging {len(paths)} graphs"):
        return stage.merge(paths)


def known_tasks(tasks: str) -> list[str]:
    """The benchmarks' names, each looked up."""
    from pipeline.scoring import benchmarks

    names = benchmarks.check_names(tasks)
    for name in names:
        benchmarks.find(name)
    return names


def scored(paths: list[Path], tasks: str | None, limit: int | None, data: Path | None, unchecked: bool) -> list[Score]:
    """The scores that exist of the artefacts, once the benchmarks named have been run on them."""
    from pipeline.scoring import results

    if tasks:
        from pipeline import score as stage

        stage.score(paths, known_tasks(tasks), limit=limit, data=data, unchecked=unchecked)
    return [score for path in paths for score in results.scores_of(path)]


def optimum_twins(paths: list[Path]) -> dict[Path, Path]:
    """The same variants cut out of the graph that optimum exports of the same checkpoint."""
    from pipeline import export as stage
    from pipeline import skip as surgery

    twins = {}
    for path in paths:
        base = stage.optimum_base(path.parent)
        twins[path] = surgery.cut(base, store.variant_of(store.read_sidecar(path)).skip)
    return twins
