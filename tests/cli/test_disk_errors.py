"""Errors of the system, each in one line: what, where, and what mends it."""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path

import pytest

from pipeline.cli import disk_errors

application = importlib.import_module("pipeline.cli.app")  # pipeline.cli.app is the typer application too


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EFBIG, "free some space or change the folder"),
        (errno.EDQUOT, "free some space or change the folder"),
        (errno.ENOENT, "put back what was there, or name another"),
        (errno.ENODEV, "put back what was there, or name another"),
        (errno.EIO, "look whether the disk fails (dmesg)"),
        (errno.ELOOP, "choose another name"),
        (errno.ENAMETOOLONG, "choose another name"),
        (errno.ESTALE, "mount the network folder again"),
        (errno.EMFILE, "raise the limit of open files (ulimit -n)"),
        (errno.ENOLCK, "choose a folder on a disk that has locks"),
        (errno.EBUSY, "wait for what uses it"),
    ],
)
def test_an_error_of_the_disk_is_one_line(
    number: int, mend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise OSError(number, os.strerror(number), "the/place")

    monkeypatch.setattr(application, "app", command)
    with pytest.raises(SystemExit) as end:
        application.main()
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.count("\n") == 1
    assert f" at the/place: {os.strerror(number)}; {mend}, then run the command again\n" in line


def test_an_error_that_is_none_of_a_disks_keeps_its_traceback() -> None:
    assert disk_errors.line(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
    assert disk_errors.line(OSError("of a library, without a number")) is None


def test_a_name_that_is_no_utf8_is_shown_escaped() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        ("a" * 500 + os.fsdecode(b"mod\xe8le")).encode()
    line = disk_errors.odd_name(caught.value)
    assert r"mod\udce8le" in line and line.isprintable() and len(line) < 300


def test_links_in_a_circle_are_known_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    with pytest.raises((OSError, RuntimeError)) as caught:
        (tmp_path / "a").resolve(strict=True)
    error = caught.value  # an OSError from Python 3.13 on
    assert disk_errors.line(error) if isinstance(error, OSError) else disk_errors.is_loop(error)
    assert not disk_errors.is_loop(RuntimeError("another"))
