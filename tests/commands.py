"""A command run inside the test's own process."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from pipeline.cli.commands import app, main


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What the command prints on stdout, after a check of its exit code; its errors are raised."""
    capsys.readouterr()
    assert (app([str(argument) for argument in arguments], standalone_mode=False) or 0) == code
    return capsys.readouterr().out


def ended(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A whole command in a folder, errors and exit code as its user has them.

    A process of its own would pay seconds for imports, as the tests of signals and surroundings do.
    """
    words = ["pipeline", *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = 0
    with contextlib.chdir(folder), patch.object(sys, "argv", words):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
    printed, said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(words, code, printed, said)
