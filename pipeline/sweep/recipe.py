"""A recipe, read from TOML. Unknown keys are refused."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline import store
from pipeline.store import markup
from pipeline.sweep import contradictions
from pipeline.sweep.sections import ModelSection, Recipe
from pipeline.types import UserError


def read(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        UserError: it is missing, no TOML, has an unknown key or value, or contradicts itself; one line.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; recipes lie in evals/recipes/")
    tables = markup.read_toml(path)
    try:
        recipe = Recipe.model_validate(tables)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None
    if problem := contradictions.of(recipe):
        raise UserError(f"{path}: {problem}")
    store.plain_name(path.stem)
    return recipe


def _first_problem(error: ValidationError) -> str:
    """The first problem in one line: where, what, and for an unknown key the nearest known one."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        value = "" if first["type"] == "missing" else f", not {first['input']!r:.80}"
        return f"{'.'.join(where)}: {first['msg']}{value}"
    known = list(_section(where[:-1]).model_fields)
    near = difflib.get_close_matches(where[-1], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {'.'.join(where)}; {hint}"


def _section(path: list[str]) -> type[BaseModel]:
    """The table of a recipe at a path of keys; the entries of `models` are the only ones inside a list."""
    table: Any = Recipe
    for part in path:
        is_table = isinstance(table, type) and issubclass(table, BaseModel)
        field = table.model_fields.get(part) if is_table else None
        table = field.annotation if field else ModelSection
    section: type[BaseModel] = table
    return section
