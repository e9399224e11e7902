"""The server's environment, where it is named or cannot be made. The real one is tested in test_server.py."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.runtime import onnxruntime
from pipeline.ship.triton import wheel
from pipeline.types import Provider, UserError
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

    def make(venv: Path, _provider: Provider) -> None:
        shutil.rmtree(venv, ignore_errors=True)
        parts[0].parent.mkdir(parents=True)
        for part in parts:
            part.write_text(wheel.PYTRITON)

    def probe(path: Path, _provider: Provider) -> str:
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


def test_cuda_has_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one leaves the other as it is."""
    monkeypatch.delenv("TRITON_PYTHON", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[tuple[Path, Provider]] = []
    monkeypatch.setattr(wheel, "_make", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(wheel, "_probe", lambda *arguments: arguments)
    providers: tuple[Provider, ...] = ("cpu", "cuda", "cpu", "cuda")
    found = [wheel.find(one) for one in providers]
    folder = tmp_path / "skip-pipeline"
    assert made == [(folder / "triton/venv", "cpu"), (folder / "triton-cuda/venv", "cuda")]
    assert found == [(venv / "bin/python", one) for venv, one in made] * 2
    assert "onnxruntime==1.31.1" in wheel.packages("cpu")
    assert "onnxruntime-gpu[cuda,cudnn]==1.31.1" in wheel.packages("cuda")


def test_the_variables_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider that was named reaches the models, whatever the user's own variable says."""
    monkeypatch.setenv("PIPELINE_PROVIDER", "auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/own")
    monkeypatch.setenv("PYTHONPATH", "/other")
    on_cpu = wheel.Wheel(tmp_path / "bin/python", tmp_path, (Path("/lib"),), tmp_path / "stub").environment()
    assert (on_cpu["PIPELINE_PROVIDER"], on_cpu["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert on_cpu["LD_LIBRARY_PATH"] == "/lib:/own" and on_cpu["PATH"].startswith(f"{tmp_path}/bin:")
    assert on_cpu["PIPELINE_STANDIN"] == "1" and "PYTHONPATH" not in on_cpu
    cuda = wheel.Wheel(tmp_path / "bin/python", tmp_path, (), tmp_path / "stub", "cuda").environment()
    assert (cuda["PIPELINE_PROVIDER"], cuda["CUDA_VISIBLE_DEVICES"]) == ("cuda", "3")


def test_the_servers_environment_is_asked_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own interpreter, with this package's code; here that is this one, whose machine has no GPU."""
    environment = wheel.Wheel(Path(sys.executable), tmp_path, (), tmp_path / "stub", "cuda")
    monkeypatch.setattr(wheel, "find", lambda _: environment)
    assert wheel.refusal("cpu") is None
    reason = onnxruntime.refusal("cuda")
    said = f"in the Triton server's environment ({sys.executable}): {reason}"
    assert wheel.refusal("cuda") == (said if reason else None)
    (tmp_path / "python").write_text("#!/bin/sh\necho '\"no such library\"'\n")
    (tmp_path / "python").chmod(0o755)
    environment = replace(environment, python=tmp_path / "python")
    assert wheel.refusal("cuda") == f"in the Triton server's environment ({tmp_path}/python): no such library"
    (tmp_path / "python").write_text("#!/bin/sh\necho null\n")
    assert wheel.refusal("cuda") is None
    (tmp_path / "python").write_text("#!/bin/sh\necho 'ImportError: no numpy' >&2\nexit 1\n")
    assert str(wheel.refusal("cuda")).endswith("python): ImportError: no numpy")

    def failed(_: Provider) -> wheel.Wheel:
        raise UserError("cannot make it: no room")

    monkeypatch.setattr(wheel, "find", failed)
    assert wheel.refusal("cuda") == "cannot make it: no room"


def test_an_interpreter_that_the_wheel_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "PYTHONS", ("{}.{}".format(*sys.version_info[:2]),))
    assert wheel._interpreter() == sys.executable
    monkeypatch.setattr(wheel, "PYTHONS", ("2.6",))
    with pytest.raises(UserError, match=r"needs Python 2\.6; install one"):
        wheel._interpreter()


def test_the_servers_processes_get_the_time_limit_and_never_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_API_KEY", "sesame")
    environment = wheel.Wheel(tmp_path, tmp_path, (), tmp_path, request_timeout=7.5).environment()
    assert environment["PIPELINE_REQUEST_TIMEOUT"] == "7.5" and "sesame" not in environment.values()
