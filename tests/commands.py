"""A command run inside the test's own process."""

from __future__ import annotations

import pytest

from pipeline.cli import app


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command prints on stdout; its errors are raised."""
    capsys.readouterr()
    app([str(argument) for argument in arguments], standalone_mode=False)
    return capsys.readouterr().out
