"""The command lines of jobs: what a person would type. Options at their default are left out."""

from __future__ import annotations

from pathlib import Path

from pipeline.sweep.jobs import Cell, Command
from pipeline.sweep.recipe import Bench, Build, Calibrate, Heal, Recipe, Select, Strict, Text
from pipeline.types import SkipSet


def export(model: str, skip: SkipSet, precision: str, adapter: str | None) -> Command:
    named = ("--skip", skip.name) if skip else ()
    healed = ("--adapter", adapter) if adapter else ()
    return (
        "pipeline",
        "export",
        model,
        *named,
        *healed,
        *(("--precision", precision) if precision != "fp32" else ()),
    )


def calibrate(model: str, given: Calibrate) -> Command:
    return ("pipeline", "calibrate", model, *_options(given, "samples", "length", "buckets"), *_text(given))


def select(model: str, cell: Cell, given: Select) -> Command:
    asked = ("--kind", str(cell.kind), "--frac", f"{cell.frac:g}", "--select", str(cell.select))
    options = _options(given, "seed", "samples", "length", "tokens")
    return ("pipeline", "select", model, *asked, *options, *_text(given), "--json")


def build(graph: Path, given: Build) -> Command:
    ranges = [
        (f"--{name}", ",".join(map(str, getattr(given, name))))
        for name in _changed(given, "batch", "length", "past")
    ]
    target = ("--target", given.target) if given.backend == "tensorrt-rtx" else ()
    flat = [word for pair in ranges for word in pair]
    return ("pipeline", "build-engine", str(graph), "--backend", given.backend, *target, *flat)


def score(artefact: Path, task: str, recipe: Recipe) -> Command:
    given, limit = recipe.score, recipe.score.limit_of(task)
    more = [*(("--limit", str(limit)) if limit else ()), *(("--data", str(given.data)) if given.data else ())]
    more += [*_options(given, "protocol"), *(("--unchecked",) if recipe.unchecked else ())]
    return ("pipeline", "score", str(artefact), "--tasks", task, *more)


def bench(artefact: Path, recipe: Recipe, decode: bool) -> Command:
    given: Bench = recipe.bench
    lengths = ",".join(map(str, given.lengths))
    more = [*_options(given, "batch", "threads"), *(("--decode",) if decode else ())]
    more += ["--unchecked"] if recipe.unchecked else []
    return (
        "pipeline",
        "bench",
        str(artefact),
        "--sequences",
        str(given.sequences),
        "--lengths",
        lengths,
        *more,
    )


def heal(graph: Path, given: Heal) -> Command:
    loss = () if given.loss == "ce" else (f"--{given.loss}",)
    targets = ("--targets", ",".join(given.targets)) if given.targets != ("mlp",) else ()
    options = _options(given, "name", "batch", "length", "rank", "lr", "quantize", "seed")
    return (
        "pipeline",
        "heal",
        str(graph),
        "--steps",
        str(given.steps),
        *options,
        *loss,
        *targets,
        *_text(given),
    )


def _text(given: Text) -> list[str]:
    files = [word for file in given.texts for word in ("--texts", str(file))]
    return files + (["--dataset", given.dataset] if given.dataset else [])


def _options(given: Strict, *names: str) -> list[str]:
    """`--name value` of the settings that are not at their default."""
    return [word for name in _changed(given, *names) for word in (f"--{name}", str(getattr(given, name)))]


def _changed(given: Strict, *names: str) -> list[str]:
    fields = type(given).model_fields
    return [name for name in names if getattr(given, name) != fields[name].default]
