"""Recipes that contradict themselves are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.grids import refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('models = ["demo"]\nselectors = ["first"]', "no selector 'first'; choose from angular"),
        (
            'models = ["demo"]\nselectors = ["last", "published"]',
            "published has sets of its own kinds and counts",
        ),
        ('models = ["demo", "org/SmolLM2-135M-Instruct"]', "name each once"),
        ('models = ["demo"]\ntasks = ["smoke"]\nstages = ["export"]', "stages lacks score"),
        ('models = ["demo"]\nstages = ["score"]', "tasks names no benchmark"),
        ('models = ["demo"]\nstages = ["build"]', '"fp16"'),
        ('models = ["demo"]\nstages = ["build"]\nprecisions = ["int4-fp32"]', '"fp16"'),
        ('models = ["demo"]\nprecisions = ["int4"]\nstages = ["heal"]', 'add "fp32" to precisions'),
        ('models = ["demo"]\nprecisions = ["int8"]\nship = ["hf"]', 'add "fp32" to precisions'),
        ('models = ["demo"]\nprecisions = ["int4", "int4-fp32"]', "precisions names int4-fp32 twice"),
        ('models = ["demo"]\nprecisions = ["int5"]', "weights of 5 bits are not written"),
        ('models = ["demo"]\nstages = ["export"]\nmeasure = "engines"', "needs build"),
        ('models = ["demo"]\nstages = ["export"]\n[score.limits]\nsmoke = 3', "score.limits names smoke"),
        ('models = ["demo"]\nship = ["hf", "hf"]', "ship names hf twice"),
        ('models = ["demo"]\n[ship]\nto = ["hf"]\ntype = "f16"', 'add "gguf" to ship.to'),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(workdir: Path, change: str, words: str) -> None:
    refused(change, words)
