"""What contradicts itself in a recipe, each table of which is right."""

from __future__ import annotations

from pipeline import store
from pipeline.calib import selectors
from pipeline.sweep.sections import Recipe
from pipeline.types import UserError, is_compensation

MAX_JOBS = 100_000
"""Of a plan."""


def of(recipe: Recipe) -> str | None:
    """Why the recipe cannot be run; None where it can."""
    folders = [model.folder for model in recipe.models]
    if len(set(folders)) < len(folders):
        return f"two models would lie in graphs/{max(folders, key=folders.count)}; name each once"
    if unknown := [name for name in recipe.selectors if name not in selectors.names()]:
        return f"no selector {unknown[0]!r}; choose from {', '.join(selectors.names())}"
    if "published" in recipe.selectors:
        return (
            "selectors: published has sets of its own kinds and counts, not a grid's; "
            "cut them with `pipeline export MODEL --select published --set NAME`"
        )
    return (
        _named_twice(recipe)
        or _wrong_tasks(recipe)
        or _wrong_engines(recipe)
        or _wrong_forms(recipe)
        or _lacks_plain(recipe)
        or _too_many(recipe)
    )


def _named_twice(recipe: Recipe) -> str | None:
    """Each is a part of the jobs' ids, a fraction by its first six digits."""
    fractions = [f"{frac:g}" for frac in recipe.fractions]
    lists = {"kinds": recipe.kinds, "fractions": fractions, "selectors": recipe.selectors}
    lists |= {"precisions": recipe.precisions, "stages": recipe.stages, "tasks": recipe.tasks}
    for key, names in lists.items():
        if len(set(names)) < len(names):
            return f"{key} names {max(names, key=names.count)} twice"
    return None


def _too_many(recipe: Recipe) -> str | None:
    """Why the plan would be too long; by arithmetic, before anything of it is made."""
    cells = len(recipe.kinds) * len(recipe.fractions) * len(recipe.selectors)
    forms, precisions = len(recipe.compensate.forms), len(recipe.precisions)
    stages = [stage in recipe.stages for stage in ("check", "build", "build", "bench", "bench")]
    jobs = 1 + sum(stages) + len(recipe.tasks) + len(recipe.ship.to)
    variants = 1 + cells * (1 + forms + ("heal" in recipe.stages))
    total = len(recipe.models) * (1 + cells + variants * jobs * precisions)
    if total <= MAX_JOBS:
        return None
    return f"up to {total:,} jobs, and a plan has {MAX_JOBS:,} at most; make several recipes of it"


def _wrong_tasks(recipe: Recipe) -> str | None:
    if "score" in recipe.stages and not recipe.tasks:
        return "stages has score, and tasks names no benchmark"
    if recipe.tasks and "score" not in recipe.stages:
        return "tasks names benchmarks, and stages lacks score"
    if unknown := _unknown_task(recipe):
        return unknown
    if strange := set(recipe.score.limits) - set(recipe.tasks):
        return f"score.limits names {', '.join(sorted(strange))}, which tasks does not"
    return None


def _unknown_task(recipe: Recipe) -> str | None:
    """Which task nobody knows; lm-eval's own are looked up only for names that are not this project's."""
    from pipeline.evals.score import benchmarks

    known = benchmarks.known()
    for task in recipe.tasks:
        if task not in known and store.is_installed("lm_eval"):
            try:
                benchmarks.find(task)
            except UserError as error:
                return f"tasks: {error}"
    return None


def _wrong_engines(recipe: Recipe) -> str | None:
    if "build" in recipe.stages and not any(name.endswith("fp16") for name in recipe.precisions):
        return 'stages has build, and engines are built from fp16 graphs: add "fp16" to precisions'
    if recipe.measure == "engines" and "build" not in recipe.stages:
        return 'measure = "engines" needs build among stages'
    return None


def _lacks_plain(recipe: Recipe) -> str | None:
    """What wants the checkpoint's own weights, where all graphs have quantised ones."""
    if recipe.plain_precisions:
        return None
    if "heal" in recipe.stages:
        return 'stages has heal, and no adapter goes into quantised weights: add "fp32" to precisions'
    if recipe.ship.to:
        return f'ship writes {recipe.ship.to[0]} of weights that are not quantised: add "fp32" to precisions'
    return None


def _wrong_forms(recipe: Recipe) -> str | None:
    forms = recipe.compensate.forms
    if unknown := [form for form in forms if not is_compensation(form)]:
        known = "bias, rank16, linear, matrix, fold or fold+rank16"
        return f"compensate: {unknown[0]!r:.40} is no form; take {known}"
    for table, names in (("compensate", forms), ("ship", recipe.ship.to)):
        if len(set(names)) < len(names):
            return f"{table} names {max(names, key=names.count)} twice"
    if recipe.ship.type is not None and "gguf" not in recipe.ship.to:
        return 'ship.type is of a GGUF: add "gguf" to ship.to'
    return None
