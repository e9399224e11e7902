"""The typer application, what all commands share, and how a command ends."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import store
from pipeline.cli import disk_errors
from pipeline.store import processes
from pipeline.types import Failed, UserError, first_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Depth-pruned LLM deployment: export, skip, check, build, bench, score.\n\n"
    "With no argument a command takes the model from PIPELINE_MODEL, else the only one under graphs/, "
    "else `demo`, and every artefact of it that it can use; it says so on stderr.",
)

GRAPHS, CHOOSE, ENGINES = "Models and graphs", "Choose and mend", "Engines"
MEASURE, DELIVER, LOOK = "Measure", "Deliver", "Look"
"""The panels of `pipeline --help`, in the order of the data flow."""

MOST_WORDS = 2000
"""Characters of an error's line at most."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
ProviderOption = Annotated[
    str,
    typer.Option(
        "--provider",
        envvar="PIPELINE_PROVIDER",
        help="What computes: cpu, cuda, or auto, which is CUDA where it works. An engine has its own GPU.",
    ),
]
DeviceMemory = Annotated[
    float | None,
    typer.Option(
        envvar="PIPELINE_DEVICE_MEMORY",
        help="GB (10^9 bytes) of the GPU's memory that may be loaded at once, on CUDA and of engines; by "
        "default all that is free.",
    ),
]
Model = Annotated[
    str | None, typer.Argument(help="HF id, local folder, .gguf file, `demo`, or a model under graphs/.")
]
Paths = Annotated[
    list[Path] | None,
    typer.Argument(help="Graphs (.onnx) or engines (.plan); by default all of the model's."),
]


def main() -> None:
    """Runs the command that sys.argv names, and exits.

    0 done, 1 a check or a document failed, 2 wrong input; 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
    """
    _speak_utf8()
    _quiet_libraries()
    with processes.stoppable():
        try:
            app()
        except SystemExit as end:
            number = processes.stopped_by()
            # `serve` ends in order at Ctrl-C.
            if number is None or (number == signal.SIGINT and not end.code):
                raise
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            # A library makes an ImportError, say, of the signal that came while it was imported.
            if processes.stopped_by() is None:
                if (code := _code(error)) is None:
                    raise
                sys.exit(code)
        if number := processes.stopped_by():
            sys.exit(128 + number)


def _quiet_libraries() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in (
        "onnx_ir",
        "httpx",
        "httpx2",
        "huggingface_hub",
        "transformers",
        "optimum",
        "torch",
        "lm_eval",
        "datasets",
    ):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # transformers sets its own level when it is imported; it would warn of names that are no identifiers.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _code(error: Exception) -> int | None:
    """Says what went wrong, in one line; the exit code. None, and nothing said, where it is our fault."""
    if isinstance(error, UserError):
        return fail(str(error))
    if isinstance(error, Failed):
        fail(str(error))
        return 1
    line = _explained(error)
    return None if line is None else fail(line)


def _explained(error: Exception) -> str | None:
    """One line for what a user can mend outside of the input; None of a fault, whose traceback is wanted."""
    if isinstance(error, OSError):
        return disk_errors.line(error)
    if isinstance(error, UnicodeEncodeError):  # of the system's names
        return disk_errors.odd_name(error)
    if disk_errors.is_loop(error):
        return f"cannot read or write: {first_line(error)}; remove that link, then run the command again"
    from pipeline.runtime import device_memory

    if device_memory.ran_out(error):
        return f"the GPU's memory, or what --device-memory gives of it, is full: {first_line(error)}"
    return None


def _speak_utf8() -> None:
    """Begins anew in Python's UTF-8 mode where the locale has no UTF-8: no name with an é could be written.

    Where only the terminal or the pipe has another encoding, that shows an escape for what it lacks.
    """
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        environment = {**os.environ, "PYTHONUTF8": "1"}
        # The option too: `python -I` does not look at the environment, and would begin anew for ever.
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")


def fail(message: str) -> int:
    """Prints one line on stderr; returns the exit code of wrong input."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


def one_line(message: str) -> str:
    """A message as a terminal shows it: one line, no control characters, the middle of a very long left out.

    What it quotes comes from files: a name of a megabyte, or one that would move the cursor.
    """
    line = " ".join(message.split())
    if len(line) > MOST_WORDS:
        line = f"{line[: MOST_WORDS - 500]} … {line[-500:]}"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def show_result(data: Any, as_json: bool, text: str | None = None) -> None:
    """Prints a result on stdout.

    Args:
        data: what --json prints.
        as_json: whether that is wanted.
        text: what a person reads.
    """
    print(json.dumps(data, indent=1, default=str) if as_json or text is None else text)


def artefact_json(path: Path) -> dict[str, Any]:
    """An artefact as --json prints it: its path and its sidecar."""
    return {"path": str(path), **store.sidecar(path, quick=True).plain()}
