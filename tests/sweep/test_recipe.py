"""The recipe: what is read from TOML, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sweep import recipe
from pipeline.types import UserError
from tests.grids import refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('fraction = [0.1]\nmodels = ["demo"]', "unknown key fraction; did you mean fractions?"),
        ('models = ["demo"]\n[bench]\nsequence = 3', "unknown key bench.sequence; did you mean sequences?"),
        ('models = [{ name = "demo", layer = 3 }]', "layer; did you mean layers?"),
        ('models = [{ name = "demo", layers = 10001 }]', "less than or equal to 10000, not 10001"),
        ('models = ["demo"]\nfractions = [1.5]', "fractions.0"),
        ('models = ["demo"]\nfractions = [nan]', "fractions.0"),
        ('models = ["demo"]\n[heal]\nlr = inf', "heal.lr"),
        ('models = ["demo"]\nkinds = ["layer"]', "'attn', 'mlp' or 'block'"),
        ('models = ["demo"]\nship = ["onnx"]', "ship.to.0"),
        ("models = [", "cannot be read as TOML"),
        ("models = []", "models"),
        (f"models = {'[' * 10_000}", "cannot be read as TOML"),
        (f"seed = {'9' * 10_000}", "cannot be read as TOML"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_in_one_line(workdir: Path, change: str, words: str) -> None:
    refused(change, words)


def test_what_is_no_recipe_is_refused_in_one_line(workdir: Path) -> None:
    with pytest.raises(UserError, match="does not exist; recipes lie in evals/recipes/"):
        recipe.read(Path("missing.toml"))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        recipe.read(workdir)
    Path("bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.toml cannot be read as TOML"):
        recipe.read(Path("bytes.toml"))
