"""Stages that a command runs before its own: the fp16 twin before a build, the check before a measurement.

Stages never import each other; the command and the demo chain them, here. Each is imported where it is needed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.cli import arguments
from pipeline.store import records
from pipeline.types import SkipSet, UserError

if TYPE_CHECKING:
    from pipeline.calib import latency_budget
    from pipeline.store.records import Score
    from pipeline.store.records import SublayerTimes

PROBES = 20
"""Sequences on which a time is measured for a choice."""


def has_gpu() -> bool:
    """Whether engines are taken by default: they run on a GPU only."""
    from pipeline.runtime import tensorrt_library

    return tensorrt_library.gpu_target() is not None


@cache
def _fp16_base(folder: Path, _cwd: Path) -> Path:
    """The fp16 base graph of a checkpoint, made or found once a command; a relative folder means another one after a chdir."""
    from pipeline.graphs import export as stage
    from pipeline.models import checkpoint

    return stage.export_base(checkpoint.open_checkpoint(folder), "fp16")


def fp16_twin(path: Path) -> Path:
    """The same variant in fp16, cut from the fp16 base."""
    from pipeline.graphs import variants as surgery

    record = store.read_sidecar(path)
    variant = store.variant_of(record)
    if variant.precision == "fp16" or record["contract"] != "authored":
        return path
    twin = surgery.cut(_fp16_base(path.parent, Path.cwd()), variant.skip)
    healed = store.healed_weights(path)
    return surgery.graft(twin, healed, variant.adapter) if healed and variant.adapter else twin


def healed(graph: Path, adapter: str) -> Path:
    """The variant's graph with an adapter merged in: only the tensors that it touched are written anew."""
    from pipeline.calib import adapters
    from pipeline.graphs import variants as surgery
    from pipeline.models import checkpoint

    skip = store.variant_of(store.read_sidecar(graph)).skip
    with arguments.busy(f"merging adapter {adapter} of {skip.name}"):
        return surgery.graft(
            graph, adapters.merge(checkpoint.open_checkpoint(graph.parent), skip, adapter), adapter
        )


def checked(paths: list[Path], unchecked: bool) -> list[Path]:
    """The paths and their bases, each checked now where it has not passed: no number stands for an unchecked artefact."""
    from pipeline.evals.bench import bench
    from pipeline.evals.check import check as stage

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
    from pipeline.graphs import merge as stage

    for path in paths:
        if path.suffix != ".onnx":
            raise UserError(f"--together takes graphs (.onnx), and {path} is none")
        if not unchecked and not store.check_passed(path):
            raise UserError(f"{path} has passed no check; run `pipeline check {path}`, or pass --unchecked")
    with arguments.busy(f"merging {len(paths)} graphs"):
        return stage.merge(paths)


def known_tasks(tasks: str, paths: list[Path]) -> list[str]:
    """The benchmarks' names, each looked up in the projects of these artefacts."""
    from pipeline.evals.score import benchmarks

    names = benchmarks.check_names(tasks)
    for project in dict.fromkeys(map(store.Project.of, paths)):
        for name in names:
            benchmarks.find(name, project=project)
    return names


def scored(
    paths: list[Path], tasks: str | None, limit: int | None, data: Path | None, unchecked: bool
) -> list[Score]:
    """The scores that exist of the artefacts, once the benchmarks named have been run on them."""
    from pipeline.evals.score import results

    if tasks:
        from pipeline.evals.score import score as stage

        settings = stage.ScoreSettings(limit=limit, data=data, unchecked=unchecked)
        stage.score(paths, known_tasks(tasks, paths), settings)
    return [score for path in paths for score in results.scores_of(path)]


def sublayer_times(base: Path, length: int) -> SublayerTimes:
    """What a sublayer of each kind takes inside the graph on this machine, from the last third of them left out; kept in calib/."""
    from pipeline.evals import machine
    from pipeline.evals.bench import bench
    from pipeline.graphs import variants as surgery

    record = store.read_sidecar(base)
    path = store.calib_dir(record["model"]) / f"times-{record['precision']}-{length}.json"
    settings = {"what": "times", "base": record["sha256"], "device": machine.device(base), "length": length}
    if path.is_file() and settings.items() <= store.read_json(path).items():
        return records.read(records.TimesRecord, path).seconds
    layers = record["num_layers"]
    third = range(layers - max(1, layers // 3), layers)
    probes = {kind: surgery.cut(base, SkipSet.of(kind, third)) for kind in ("attn", "mlp")}
    report = bench.bench(
        list(probes.values()), sequences=PROBES, lengths=(length,), unchecked=True, write=False
    )
    saved = {row.artefact: row.improvement / 100 for row in report.rows}
    whole = next(row.p50 for row in report.rows if row.artefact == str(base)) / 1e3
    each = {kind: max(0.0, whole * saved[str(probe)] / len(third)) for kind, probe in probes.items()}
    store.write_json(path, {**settings, "sequences": PROBES, "seconds": {"whole": whole, **each}})
    return records.SublayerTimes(whole=whole, attn=each["attn"], mlp=each["mlp"])


def within_budget(
    folder: Path, kind: str, speedup: float | None, latency_ms: float | None, length: int
) -> tuple[list[latency_budget.Round], bool, SublayerTimes]:
    """Chooses what to leave out for a time, and measures what was chosen: (rounds, whether it was reached, times)."""
    from pipeline.calib import latency_budget, similarity
    from pipeline.evals.bench import bench
    from pipeline.graphs import export as stage
    from pipeline.graphs import variants as surgery
    from pipeline.models import checkpoint

    told = similarity.of_checkpoint(folder)
    damage = latency_budget.candidates(kind, told)
    base = stage.export_base(checkpoint.open_checkpoint(folder), "fp32")
    times = sublayer_times(base, length)
    wanted = speedup if speedup is not None else times.whole / ((latency_ms or 0.0) / 1e3)
    if latency_ms is not None and wanted <= 1:
        raise UserError(
            f"{latency_ms:g} ms is what the whole model already keeps: it takes {times.whole * 1e3:.0f} ms for {length} tokens"
        )

    def measure(skip: SkipSet) -> float:
        path = surgery.cut(base, skip)
        report = bench.bench(checked([path], False), sequences=PROBES, lengths=(length,))
        return 1 / (1 - next(row.improvement for row in report.rows if row.artefact == str(path)) / 100)

    rounds, reached = latency_budget.choose(damage, times, wanted, measure)
    return rounds, reached, times


def optimum_twins(paths: list[Path]) -> dict[Path, Path]:
    """The same variants cut out of the graph that optimum exports of the same checkpoint."""
    from pipeline.graphs import export as stage
    from pipeline.graphs import variants as surgery

    twins = {}
    for path in paths:
        base = stage.optimum_base(path.parent)
        twins[path] = surgery.cut(base, store.variant_of(store.read_sidecar(path)).skip)
    return twins
