"""A small grid for the tests of `pipeline sweep`: the recipe, with and without its model, and its plan."""

from __future__ import annotations

from pathlib import Path

from pipeline import store
from pipeline.sweep import plan, recipe
from pipeline.sweep.jobs import SweepPlan

GRID = """
models = ["{model}"]
kinds = ["attn", "mlp"]
fractions = [0.3, 0.6]
selectors = ["last", "last-but-final"]
stages = ["export", "check", "score", "bench"]
tasks = ["smoke"]
[score]
limit = 5
[bench]
sequences = 2
lengths = [8]
"""


def put(text: str, name: str = "grid") -> Path:
    path = Path(f"{name}.toml")
    path.write_text(text)
    return path


def known(text: str = GRID, layers: int = 3, name: str = "grid") -> Path:
    """The recipe with a model of so many layers that is not there yet."""
    return put(
        text.replace('models = ["{model}"]', "") + f'\n[[models]]\nname = "org/tiny"\nlayers = {layers}\n',
        name,
    )


def made(path: Path) -> tuple[recipe.Recipe, SweepPlan]:
    read = recipe.read(path)
    return read, plan.make(read, store.Project().sweep(path.stem))
