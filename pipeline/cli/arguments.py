"""What the command's arguments mean: the default model, the default artefacts, ranges and lists of numbers."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline import store
from pipeline.models.checkpoint import folder_name
from pipeline.types import UserError


def say(message: str) -> None:
    """Words for the person go to stderr; stdout is for results."""
    print(message, file=sys.stderr)


def model(name: str | None) -> str:
    """The model named, else the default one (`store.default_model`), which is said on stderr."""
    if name is None:
        name = store.default_model()
        say(f"model: {name}")
    return name


def print_table(table: object) -> None:
    """A rich table on stdout; wide enough for its numbers where a pipe would cut them."""
    from rich.console import Console

    Console(width=max(Console().width, 150)).print(table)


def without_torch() -> None:
    """For a command that wants nothing of transformers but tokenizers: torch, 8 s of imports, stays out of this process."""
    if "transformers" not in sys.modules:
        os.environ |= {"USE_TORCH": "0", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


def busy(what: str) -> AbstractContextManager[object]:
    """A spinner on the terminal while something takes its time; nothing where there is no terminal."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def artefacts(paths: list[Path] | None, *, engines: bool = False, precision: str | None = None) -> list[Path]:
    """The paths given, else every graph (and engine) of the default model that the stage can use; says which on stderr.

    Raises:
        UserError: there is none.
    """
    if paths:
        return paths
    name = folder_name(model(None))
    found = [path for path in store.graphs_of(name) if precision is None or path.stem.endswith(precision)]
    found += store.engines_of(name) if engines else []
    if not found:
        raise UserError(f"{name} has no artefact to work on; make one with `pipeline export`")
    say("taking: " + ", ".join(str(path) for path in found))
    return found


def triple(text: str, option: str) -> tuple[int, int, int]:
    """'1,1,8' → (1, 1, 8): minimum, optimum and maximum of an optimisation profile."""
    low, best, high = (*numbers(text, option), -1, -1, -1)[:3]
    if len(text.split(",")) != 3 or not 0 <= low <= best <= high:
        raise UserError(f"{option} {text!r} is not min,opt,max in ascending order, such as 1,1,8")
    return low, best, high


def numbers(text: str, option: str) -> list[int]:
    """'50,100' → [50, 100]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r} is not a list of whole numbers, such as 50,100") from None
