"""A command run inside the test's own process."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
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
    written = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(one, encoding="utf-8", write_through=True) for one in written)
    code = 0
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _logged(err)
    with contextlib.chdir(folder), patch.object(sys, "argv", words), streams[0], streams[1], streams[2]:
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    printed, said = (one.getvalue().decode() for one in written)
    return subprocess.CompletedProcess(words, code, printed, said)


@contextlib.contextmanager
def _logged(stream: TextIO) -> Iterator[None]:
    """The log's lines go there, as `main` has them on stderr where nobody else has set up the log."""
    root, handler = logging.getLogger(), logging.StreamHandler(stream)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
