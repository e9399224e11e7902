"""Importing this module registers every command; importing the package alone registers none, and is quick."""

from __future__ import annotations

import subprocess
import sys

from pipeline.cli import commands
from tests import tiny


def test_every_file_of_commands_is_there() -> None:
    names = {command.name or command.callback.__name__ for command in commands.app.registered_commands}
    assert {
        "export",
        "calibrate",
        "compensate",
        "bench",
        "report",
        "sweep",
        "generate",
        "ship",
        "list",
    } <= names


def test_the_entry_imports_nothing_heavy() -> None:
    """A signal is quiet from its first line on."""
    script = "import sys, pipeline.cli; print({'typer', 'pydantic', 'numpy', 'torch'} & sys.modules.keys())"
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, env=tiny.environment(), check=True)
    assert done.stdout == "set()\n"
