"""A command run inside the test's own process."""

from __future__ import annotations

import pytest

from pipeline.cli.commands import app


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What the command prints on stdout, after a check of its exit code; its errors are raised."""
    capsys.readouterr()
    assert (app([str(argument) for argument in arguments], standalone_mode=False) or 0) == code
    return capsys.readouterr().out
