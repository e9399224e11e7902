"""Recipes that contradict themselves are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sweep import recipe
from pipeline.types import UserError
from tests.grids import put


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('models = ["demo"]\nselectors = ["first"]', "no selector 'first'; choose from angular"),
        ('models = ["demo", "org/SmolLM2-135M-Instruct"]', "name each once"),
        ('models = ["demo"]\ntasks = ["smoke"]\nstages = ["export"]', "stages lacks score"),
        ('models = ["demo"]\nstages = ["score"]', "tasks names no benchmark"),
        ('models = ["demo"]\nstages = ["build"]', '"fp16"'),
        ('models = ["demo"]\nstages = ["export"]\nmeasure = "engines"', "needs build"),
        ('models = ["demo"]\nstages = ["export"]\n[score.limits]\nsmoke = 3', "score.limits names smoke"),
        ('models = ["demo"]\nship = ["hf", "hf"]', "ship names hf twice"),
        ('models = ["demo"]\n[ship]\nto = ["hf"]\ntype = "f16"', 'add "gguf" to ship.to'),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(workdir: Path, change: str, words: str) -> None:
    defaults = {"kinds": '["attn"]', "fractions": "[0.1]", "selectors": '["last"]', "stages": '["export"]'}
    top = change.split("\n[")[0]
    tables = change[len(top) :]
    lines = [f"{key} = {value}" for key, value in defaults.items() if f"\n{key}" not in f"\n{top}"]
    path = put("\n".join([top, *lines]) + tables)
    with pytest.raises(UserError) as error:
        recipe.read(path)
    assert words in str(error.value) and "\n" not in str(error.value).strip()
