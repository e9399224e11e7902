"""What the tables of a recipe say, and what they say where they are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sweep import recipe
from pipeline.types import UserError
from tests.grids import put


def test_a_recipe_is_read_with_its_defaults(workdir: Path) -> None:
    text = 'models = ["org/m x", { name = "demo", layers = 30 }]\nkinds = ["attn"]\nfractions = [0.25]\n'
    settings = recipe.read(
        put(text + 'selectors = ["last"]\ntasks = ["arc", "mmlu"]\n[score]\nlimits.arc = 7\n')
    )
    assert [model.folder for model in settings.models] == ["m x", "SmolLM2-135M-Instruct"]
    assert settings.models[1].layers == 30 and settings.precisions == ("fp32",) and not settings.unchecked
    assert [settings.score.limit_of(task) for task in settings.tasks] == [7, None]
    assert settings.bench.lengths == (50, 100) and settings.heal.lr == 3e-4


def test_forms_of_a_compensation_are_a_list_or_a_table(workdir: Path) -> None:
    grid = (
        'models = ["demo"]\nkinds = ["mlp"]\nfractions = [0.25]\nselectors = ["last"]\nstages = ["export"]\n'
    )
    for text in ('compensate = ["linear", "fold+rank16"]', '[compensate]\nforms = ["linear", "fold+rank16"]'):
        read = recipe.read(put(grid + text)).compensate
        assert read.forms == ("linear", "fold+rank16") and (read.samples, read.length) == (48, 256)
    assert recipe.read(put(grid)).compensate.forms == ()
    for text, message in (
        ('compensate = ["linaer"]', "compensate: 'linaer' is no form; take bias"),
        ('compensate = ["auto"]', "compensate: 'auto' is no form"),
        ('compensate = ["bias", "bias"]', "compensate names bias twice"),
        ('compensate = "linear"', "compensate"),
        ("[compensate]\nsample = 3", "did you mean samples"),
    ):
        with pytest.raises(UserError, match=message):
            recipe.read(put(grid + text))
