"""The command lines of jobs: what a person would type. Options at their default are left out."""

from __future__ import annotations

from pathlib import Path

from pipeline.calib import selectors
from pipeline.sweep import sections
from pipeline.sweep.jobs import Command, GridCell
from pipeline.sweep.sections import Recipe, Section, TextSection
from pipeline.types import Variant


def export(model: str, variant: Variant) -> Command:
    """`pipeline export`; model: as the command takes it, `variant` knows only its folder."""
    skip = ("--skip", variant.skip.name)  # of the base too: a config.json may drop sublayers
    adapter = ("--adapter", variant.adapter) if variant.adapter else ()
    name = variant.precision_name
    precision = ("--precision", name) if name != "fp32" else ()
    return ("pipeline", "export", model, *skip, *adapter, *precision)


def calibrate(model: str, settings: sections.CalibrateSection) -> Command:
    """`pipeline calibrate`."""
    options = _options(settings, "samples", "length", "buckets")
    return ("pipeline", "calibrate", model, *options, *_text(settings))


def select(model: str, cell: GridCell, settings: sections.SelectSection) -> Command:
    """`pipeline select`, whose JSON is its result."""
    rule = ("--kind", str(cell.kind), "--frac", f"{cell.frac:g}", "--select", str(cell.select))
    own = selectors.options_of(str(cell.select), settings.start)
    read = [name for name in selectors.OPTIONS if name in own]
    options = _options(settings, *(name for name in read if name not in ("texts", "dataset")))
    if cell.select == "evo":
        options += _options(settings, "start", "minutes", "generations")
        options += ["--compensated"] if settings.compensated else []
    options += _text(settings) if "texts" in read else []
    return ("pipeline", "select", model, *rule, *options, "--json")


def check(artefact: Path) -> Command:
    """`pipeline check`."""
    return ("pipeline", "check", str(artefact))


def build(graph: Path, settings: sections.BuildSection) -> Command:
    """`pipeline build-engine`."""
    ranges = [
        word
        for name in _changed(settings, "batch", "length", "past")
        for word in (f"--{name}", ",".join(map(str, getattr(settings, name))))
    ]
    target = ("--target", settings.target) if settings.backend == "tensorrt-rtx" else ()
    return ("pipeline", "build-engine", str(graph), "--backend", settings.backend, *target, *ranges)


def score(artefact: Path, task: str, recipe: Recipe) -> Command:
    """`pipeline score` on one benchmark."""
    settings = recipe.score
    limit = settings.limit_of(task)
    options = [*(("--limit", str(limit)) if limit else ())]
    options += ["--data", str(settings.data)] if settings.data else []
    options += _options(settings, "protocol")
    return ("pipeline", "score", str(artefact), "--tasks", task, *options, *_unchecked(recipe))


def bench(artefact: Path, recipe: Recipe, decode: bool, beside: tuple[Path, ...] = ()) -> Command:
    """`pipeline bench`; what is timed beside the artefact and its base comes behind it."""
    settings = recipe.bench
    sizes = ("--sequences", str(settings.sequences), "--lengths", ",".join(map(str, settings.lengths)))
    options = [*_options(settings, "batch", "threads"), *(("--decode",) if decode else ())]
    return ("pipeline", "bench", *map(str, (artefact, *beside)), *sizes, *options, *_unchecked(recipe))


def heal(graph: Path, settings: sections.HealSection) -> Command:
    """`pipeline heal`."""
    options = _options(settings, "name", "batch", "length", "rank", "lr", "quantize", "seed")
    options += [] if settings.loss == "ce" else [f"--{settings.loss}"]
    options += [] if settings.targets == ("mlp",) else ["--targets", ",".join(settings.targets)]
    steps = ("--steps", str(settings.steps))
    return ("pipeline", "heal", str(graph), *steps, *options, *_text(settings))


def compensate(graph: Path, form: str, settings: sections.CompensateSection) -> Command:
    """`pipeline compensate`; what it would time, `bench` times."""
    options = [*_options(settings, "samples", "length"), *(["--refit"] if settings.refit else [])]
    return ("pipeline", "compensate", str(graph), "--with", form, *options, *_text(settings), "--no-time")


def ship(graph: Path, form: str, place: Path, recipe: Recipe) -> Command:
    """`pipeline ship` to another engine's form; place: the file or the folder that it writes."""
    kind = ("--type", recipe.ship.type) if form == "gguf" and recipe.ship.type else ()
    force = ("--force",) if form == "hf" and recipe.ship.force else ()
    return ("pipeline", "ship", str(graph), "--to", form, str(place), *kind, *force, *_unchecked(recipe))


def _unchecked(recipe: Recipe) -> tuple[str, ...]:
    return ("--unchecked",) if recipe.unchecked else ()


def _text(settings: TextSection) -> list[str]:
    files = [word for file in settings.texts for word in ("--texts", str(file))]
    return files + (["--dataset", settings.dataset] if settings.dataset else [])


def _options(settings: Section, *names: str) -> list[str]:
    """`--name value` of the settings that are not at their default."""
    return [
        word for name in _changed(settings, *names) for word in (f"--{name}", str(getattr(settings, name)))
    ]


def _changed(settings: Section, *names: str) -> list[str]:
    fields = type(settings).model_fields
    return [name for name in names if getattr(settings, name) != fields[name].default]
