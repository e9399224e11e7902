"""What a command's arguments mean (default model and artefacts, ranges), and how it prints tables."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline import store
from pipeline.models.origins import folder_name
from pipeline.types import Devices, Provider, UserError

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
"""Columns of a table that is printed into a file or a pipe."""


def say(message: str) -> None:
    """Prints words for the person on stderr; stdout is for results."""
    print(message, file=sys.stderr)


def not_empty(option: typer.CallbackParam, text: str | None) -> str | None:
    """The text of an option, which must say something: an unset `$NAME` would do without, and say nothing.

    Raises:
        UserError: it is ''.
    """
    if text == "":
        raise UserError(f"{option.opts[0]} is empty; name one, or leave it out")
    return text


def above_zero(option: typer.CallbackParam, number: float) -> float:
    """A number of an option, above 0 and finite.

    Raises:
        UserError: it is not.
    """
    if not 0 < number < math.inf:
        raise UserError(f"{option.opts[0]} {number:g} is not a number above 0")
    return number


def one_model(argument: str | None, option: str | None) -> str:
    """The model that MODEL or --model names, else the default one, which is said on stderr.

    Raises:
        UserError: they name two.
    """
    if None not in (argument, option) and argument != option:
        raise UserError(f"MODEL {argument!r:.80} and --model {option!r:.80} are two models; name one")
    return model(option if argument is None else argument)


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
    graphs = [path for path in store.graphs_of(name) if precision in (None, path.stem.rpartition(".")[2])]
    chosen = graphs + (store.engines_of(name) if engines else [])
    if not chosen:
        raise UserError(f"{name} has no artefact to work on; make one with `pipeline export`")
    say("taking: " + ", ".join(str(path) for path in chosen))
    return chosen


def provider(name: str, elsewhere: Callable[[Provider], str | None] | None = None) -> Provider:
    """The provider of ONNX Runtime that --provider names; what `auto` is here is said on stderr.

    Args:
        name: cpu, cuda or auto.
        elsewhere: why a provider cannot run graphs in another environment that will run some too.

    Raises:
        UserError: it is none of the three, or CUDA runs no graphs here (why, and what mends it).
    """
    from pipeline.runtime import onnxruntime

    def refusal(one: Provider) -> str | None:
        return onnxruntime.refusal(one) or (elsewhere(one) if elsewhere else None)

    return _taken(name, "graphs", refusal)


def devices(name: str, must: bool) -> Devices:
    """The same, and PyTorch's device beside it.

    Args:
        name: what --provider names.
        must: refuse a PyTorch without CUDA beside graphs on CUDA; else it takes the CPU, and says so.

    Raises:
        UserError: as `provider`; or PyTorch has no CUDA, and must.
    """
    from pipeline.models.devices import refusal

    graphs = provider(name)
    if graphs == "cpu":
        return Devices()
    return Devices(graphs, _taken("cuda" if must else "auto", "PyTorch", refusal))


def torch_device(name: str, gigabytes: float | None = None) -> Provider:
    """PyTorch's device alone, where no graph runs.

    Args:
        name: what --provider names.
        gigabytes: what --device-memory says.

    Raises:
        UserError: it is none of the three, or PyTorch has no CUDA (why, and what mends it); as
            `bound_device_memory`.
    """
    from pipeline.models.devices import refusal

    device = _taken(name, "PyTorch", refusal)
    bound_device_memory(gigabytes, [device])
    return device


def bound_device_memory(gigabytes: float | None, on: Iterable[Provider], paths: Iterable[Path] = ()) -> None:
    """Bounds what this command loads on the GPU at once.

    Args:
        gigabytes: what --device-memory or its variable says.
        on: where graphs and PyTorch compute.
        paths: of artefacts; engines run on the GPU.

    Raises:
        UserError: no number above 0; or the command line has it, and nothing runs on a GPU.
    """
    from pipeline.runtime import device_memory

    if gigabytes is None:
        return
    device_memory.parsed(str(gigabytes))
    if "cuda" in on or any(path.suffix == ".plan" for path in paths):
        os.environ[device_memory.VARIABLE] = str(gigabytes)
    elif device_memory.bound() != int(gigabytes * device_memory.GB):  # it does not come from the environment
        raise UserError("--device-memory bounds a GPU's memory, and this runs on the CPU: --provider cuda")


def _taken(name: str, what: str, refusal: Callable[[Provider], str | None]) -> Provider:
    """What a name of a provider means here.

    Args:
        name: cpu, cuda or auto.
        what: will run there, in words.
        refusal: why it cannot.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise UserError(f"--provider is cpu, cuda or auto, not {name!r:.40}")
    if name == "cpu":
        return "cpu"
    reason = refusal("cuda")
    if name == "cuda" and reason:
        raise UserError(reason)
    if name == "auto":
        say(f"{what} on the CPU: {reason}" if reason else f"{what} on CUDA")
    return "cpu" if reason else "cuda"


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
