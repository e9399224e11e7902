"""The server's environment, where it is named or cannot be made. The real one is tested in test_server.py."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.ship.triton import wheel
from pipeline.types import UserError
from tests.interrupted import every_kill


def python(folder: Path, **facts: str) -> Path:
    """An interpreter that says this of itself."""
    path = folder / "python"
    defaults = {"origin": f"{folder}/pytriton/__init__.py", "version": "3.11", "libdir": "/lib"}
    said = {"python": str(path), "numpy": "1.26.4", **defaults, **facts}
    path.write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\n")
    path.chmod(0o755)
    return path


def test_triton_python_names_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    interpreter = python(tmp_path)
    monkeypatch.setenv("TRITON_PYTHON", str(interpreter))
    libraries = (Path("/lib"), tmp_path / "nvidia_pytriton.libs")
    assert wheel.find() == wheel.Wheel(interpreter, tmp_path / "pytriton/tritonserver", libraries, stub)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"numpy": "2.1.0"}, "has numpy 2.1.0, and the Triton wheel's stub needs numpy below 2"),
        ({"version": "3.13"}, "no Python stub for Python 3.13; use 3.11 or 3.12"),
    ],
)
def test_an_environment_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("TRITON_PYTHON", str(python(tmp_path, **facts)))
    with pytest.raises(UserError, match=message):
        wheel.find()


def test_an_environment_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_PYTHON", sys.executable)
    with pytest.raises(
        UserError, match=r"has no nvidia-pytriton; unset TRITON_PYTHON, or `.* -m pip install"
    ):
        wheel.find()


def test_an_environment_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho one >&2\necho no room >&2\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.delenv("TRITON_PYTHON", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheel, "_interpreter", lambda: str(interpreter))
    with pytest.raises(UserError, match=r"cannot make the Triton server's environment in .*: no room"):
        wheel.find()
    assert not (tmp_path / "skip-pipeline/triton/.ready").exists()


def test_a_venv_that_is_half_made_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any change while one of other packages is replaced, whichever packages are wanted next."""
    folder = tmp_path / "skip-pipeline/triton"
    parts = folder / "venv/bin/python", folder / "venv/packages"

    def make(venv: Path) -> None:
        shutil.rmtree(venv, ignore_errors=True)
        parts[0].parent.mkdir(parents=True)
        for part in parts:
            part.write_text(wheel.PYTRITON)

    def probe(path: Path) -> str:
        return " ".join(part.read_text() for part in (path, parts[1]))

    def use(pytriton: str) -> str:
        monkeypatch.setattr(wheel, "PYTRITON", pytriton)
        return str(wheel.find())

    monkeypatch.delenv("TRITON_PYTHON", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheel, "_make", make)
    monkeypatch.setattr(wheel, "_probe", probe)
    for next_one in ("old", "new"):
        for left in every_kill(tmp_path, lambda: use("old"), lambda: use("new")):
            assert use(next_one) == f"{next_one} {next_one}", left


def test_an_interpreter_that_the_wheel_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "PYTHONS", ("{}.{}".format(*sys.version_info[:2]),))
    assert wheel._interpreter() == sys.executable
    monkeypatch.setattr(wheel, "PYTHONS", ("2.6",))
    with pytest.raises(UserError, match=r"needs Python 2\.6; install one"):
        wheel._interpreter()
