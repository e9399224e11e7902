"""What contradicts itself in a recipe, each table of which is right."""

from __future__ import annotations

from pipeline.calib import selectors
from pipeline.sweep.sections import Recipe
from pipeline.types import is_compensation


def of(recipe: Recipe) -> str | None:
    """Why the recipe cannot be run; None where it can."""
    folders = [model.folder for model in recipe.models]
    if len(set(folders)) < len(folders):
        return f"two models would lie in graphs/{max(folders, key=folders.count)}; name each once"
    if unknown := [name for name in recipe.selectors if name not in selectors.names()]:
        return f"no selector {unknown[0]!r}; choose from {', '.join(selectors.names())}"
    return _wrong_tasks(recipe) or _wrong_engines(recipe) or _wrong_forms(recipe)


def _wrong_tasks(recipe: Recipe) -> str | None:
    if "score" in recipe.stages and not recipe.tasks:
        return "stages has score, and tasks names no benchmark"
    if recipe.tasks and "score" not in recipe.stages:
        return "tasks names benchmarks, and stages lacks score"
    if strange := set(recipe.score.limits) - set(recipe.tasks):
        return f"score.limits names {', '.join(sorted(strange))}, which tasks does not"
    return None


def _wrong_engines(recipe: Recipe) -> str | None:
    if "build" in recipe.stages and "fp16" not in recipe.precisions:
        return 'stages has build, and engines are built from fp16 graphs: add "fp16" to precisions'
    if recipe.measure == "engines" and "build" not in recipe.stages:
        return 'measure = "engines" needs build among stages'
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
