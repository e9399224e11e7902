"""How a command ends, and how the help is laid out."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.cli import app as application
from pipeline.cli import commands
from pipeline.store import sidecar
from pipeline.types import Failed, UserError
from tests import tiny
from tests.commands import run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("one\n  two"), 2, "error: one two"),
        (Failed("three of four"), 1, "error: three of four"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "error: cannot write at x: No space left"),
        (
            OSError(errno.ENOSPC, "No space left", "from", None, "to"),
            2,
            "error: cannot write at to: No space",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            2,
            "error: cannot read or write at x: Perm",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "calib/m"),
            2,
            "error: cannot read or write at calib/m: Not a directory; move away what lies there",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "nnn"),
            2,
            "error: cannot read or write at nnn: File name too long; choose another name",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
            2,
            "error: the GPU's memory, or what --device-memory gives of it, is full: CUDA out of memory.",
        ),
    ],
)
def test_how_a_command_ends(
    error: BaseException, code: int, line: str, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(application, "app", command)
    with pytest.raises(SystemExit) as end:
        application.main()
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        RuntimeError("out of memory, I guess"),
    ],
)
def test_an_error_of_another_kind_is_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(application, "app", command)
    with pytest.raises(type(error), match=str(error.args[-1])):
        application.main()


def test_the_panels_stand_in_the_order_of_the_data_flow() -> None:
    """In a process of its own: here other tests may have imported the commands in another order."""
    line = [sys.executable, "-m", "pipeline.cli", "--help"]
    words = subprocess.run(line, capture_output=True, text=True, check=True, env=tiny.environment()).stdout
    panels = ["Models and graphs", "Choose and mend", "Engines", "Measure", "Deliver", "Look"]
    places = [words.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    measure = words[places[3] : places[4]]
    for command in ("check", "bench", "score", "lm-eval", "report", "figures", "sweep"):
        assert f"│ {command} " in measure


def test_every_command_has_an_example() -> None:
    for command in commands.app.registered_commands:
        assert "Example:" in (command.callback.__doc__ or ""), command.callback.__name__


def test_help_names_every_selector(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from pipeline.calib import selectors

    monkeypatch.setenv("COLUMNS", "200")
    words = run(capsys, "export", "--help")
    for name in selectors.names():
        assert name in words
    assert "pipeline/calib/selectors/" in run(capsys, "select", "--help")
    assert Path(selectors.__file__).parent.parts[-3:] == ("pipeline", "calib", "selectors")


def test_an_artefact_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "mlp1.fp32.onnx"
    assert application.artefact_json(path) == {"path": str(path), **sidecar(path).plain()}
    application.show_result({"a": Path("x")}, True, "words")
    assert json.loads(capsys.readouterr().out) == {"a": "x"}
    application.show_result({"a": 1}, False, "words")
    assert capsys.readouterr().out == "words\n"


def test_what_a_file_says_does_not_move_the_cursor_or_fill_the_screen() -> None:
    assert application.one_line("a\n b\tc é 漢") == "a b c é 漢"
    assert application.one_line("\x1b[2J\0\ud800\u202e") == r"\x1b[2J\x00\ud800\u202e"
    long = application.one_line(f"begin {'x' * 10**6} end")
    assert len(long) < 2100 and long.startswith("begin xxx") and long.endswith("xxx end") and " … " in long
