"""What a command's arguments mean (default model and artefacts, ranges), and how it prints tables."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.models.origins import folder_name
from pipeline.types import UserError

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
"""Columns of a table that is printed into a file or a pipe."""


def say(message: str) -> None:
    """Prints words for the person on stderr; stdout is for results."""
    print(message, file=sys.stderr)


def model(name: str | None) -> str:
    """The model that is named, else the default one (`store.default_model`), which is said on stderr."""
    if name is None:
        name = store.default_model()
        say(f"model: {name}")
    return name


def model_folder(name: str | None) -> str:
    """The same as the name of its folder under graphs/."""
    return folder_name(model(name))


def print_table(table: Table) -> None:
    """Prints a table on stdout, no narrower than its numbers need."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    wide = console.options.update(width=1000)
    narrowest = Measurement.get(console, wide, table).minimum
    Console(width=max(console.width, WIDTH, narrowest)).print(table)


def without_torch() -> None:
    """Keeps torch, 8 s of imports, out of a command that uses nothing of transformers but tokenizers."""
    if "transformers" not in sys.modules:
        os.environ |= {"USE_TORCH": "0", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


def without_bars() -> None:
    """Keeps lm-eval's bars from standing beside a command's own. tqdm looks when it is imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")


def busy(what: str) -> AbstractContextManager[object]:
    """A spinner on the terminal while something takes its time; nothing where there is no terminal."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def artefacts(paths: list[Path] | None, *, engines: bool = False, precision: str | None = None) -> list[Path]:
    """The artefacts that a stage works on.

    Args:
        paths: those that are named; or else every graph of the default model, which is said on stderr.
        engines: with none named, the engines too.
        precision: with none named, only graphs of this precision.

    Raises:
        UserError: there is none.
    """
    if paths:
        return paths
    name = model_folder(None)
    graphs = [path for path in store.graphs_of(name) if precision is None or path.stem.endswith(precision)]
    chosen = graphs + (store.engines_of(name) if engines else [])
    if not chosen:
        raise UserError(f"{name} has no artefact to work on; make one with `pipeline export`")
    say("taking: " + ", ".join(str(path) for path in chosen))
    return chosen


def triple(text: str, option: str) -> tuple[int, int, int]:
    """'1,1,8' → (1, 1, 8): minimum, optimum and maximum of an optimisation profile.

    Raises:
        UserError: it is not three whole numbers in ascending order.
    """
    low, best, high = (*numbers(text, option), -1, -1, -1)[:3]
    if len(text.split(",")) != 3 or not 0 <= low <= best <= high:
        raise UserError(f"{option} {text!r} is not min,opt,max in ascending order, such as 1,1,8")
    return low, best, high


def numbers(text: str, option: str) -> list[int]:
    """'50,100' → [50, 100].

    Raises:
        UserError: it is not a list of whole numbers.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r} is not a list of whole numbers, such as 50,100") from None
