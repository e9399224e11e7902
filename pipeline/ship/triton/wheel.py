"""The real Triton server of the `nvidia-pytriton` wheel: HTTP, gRPC, Python backend.

It has an environment of its own, because the wheel's Python stub needs numpy below 2; and one more for CUDA,
whose ONNX Runtime brings gigabytes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import store
from pipeline.store.processes import end_with_parent
from pipeline.types import Provider, UserError, first_line

log = logging.getLogger(__name__)
PYTRITON = "nvidia-pytriton==0.7.0"
"""Triton 2.51.0 (24.10)."""
RUNTIMES: dict[Provider, str] = {
    "cpu": "onnxruntime==1.31.1",
    "cuda": "onnxruntime-gpu[cuda,cudnn]==1.31.1",
}
PYTHONS = ("3.11", "3.12")
"""Those that our code and the wheel's stubs both run on."""

REQUEST_TIMEOUT = 300.0
"""Seconds from a request's arrival to its end, where nothing else is said."""
DROPPED = ("PYTHONHOME", "PYTHONPATH", "PIPELINE_API_KEY")
"""Variables that the server does not get: another Python's, and the clients' key."""

ROOT = Path(__file__).parents[3]
"""Where this package lies."""

_PROBE = """
import importlib.util as u, json, sys, sysconfig
from importlib.metadata import version
print(json.dumps({
    "origin": u.find_spec("pytriton").origin, "version": "%d.%d" % sys.version_info[:2],
    "python": sys.executable, "libdir": sysconfig.get_config_var("LIBDIR"), "numpy": version("numpy"),
}))
"""
_REFUSAL = """
import json, sys
sys.path.append(sys.argv[1])
from pipeline.runtime.onnxruntime import refusal
print(json.dumps(refusal(sys.argv[2])))
"""


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where the parts of the server lie.

    Attributes:
        python: the environment's interpreter.
        root: the wheel's `tritonserver` folder.
        libraries: folders for LD_LIBRARY_PATH: that of the interpreter's libpython, then the wheel's.
        stub: the Python backend's stub for this interpreter.
        provider: of ONNX Runtime, that runs the graphs.
        request_timeout: seconds that a text model gives a request.
    """

    python: Path
    root: Path
    libraries: tuple[Path, ...]
    stub: Path
    provider: Provider = "cpu"
    request_timeout: float = REQUEST_TIMEOUT

    def environment(self) -> dict[str, str]:
        """The variables of a process that runs in it."""
        kept = {key: value for key, value in os.environ.items() if key not in DROPPED}
        libraries = [*map(str, self.libraries), *filter(None, [kept.get("LD_LIBRARY_PATH")])]
        # Triton starts a model on every GPU that it sees. All that computes here is on one, or on none.
        first = kept.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return {
            **kept,
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # The stub runs the first `python3` of PATH.
            "PATH": f"{self.python.parent}{os.pathsep}{kept.get('PATH', '')}",
            "CUDA_VISIBLE_DEVICES": first if self.provider == "cuda" else "",
            "PIPELINE_PROVIDER": self.provider,
            "PIPELINE_REQUEST_TIMEOUT": f"{self.request_timeout:g}",
            "PIPELINE_STANDIN": "1",
            "PIPELINE_ROOT": str(ROOT),
        }


def packages(provider: Provider) -> tuple[str, ...]:
    """What is in the environment of a provider, beside the server."""
    return "numpy==1.26.4", RUNTIMES[provider], "tokenizers==0.22.2", "jinja2==3.1.6"


def refusal(provider: Provider) -> str | None:
    """Why no graph runs on a provider in the server's environment; None where it does.

    Args:
        provider: 'cpu' or 'cuda', whose environment is made where it is missing.
    """
    if provider == "cpu":
        return None
    try:
        wheel = find(provider)
    except UserError as error:
        return str(error)
    done = subprocess.run(
        [str(wheel.python), "-c", _REFUSAL, str(ROOT), provider],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=wheel.environment(),
    )
    reason: str | None = json.loads(done.stdout) if done.returncode == 0 else first_line(done.stderr[-200:])
    return reason and f"in the Triton server's environment ({wheel.python}): {reason}"


def find(provider: Provider = "cpu") -> Wheel:
    """The server's environment: that of TRITON_PYTHON, else the cached one of a provider.

    A missing one is made, which takes a minute and 400 MB; some GB with CUDA's libraries.

    Raises:
        UserError: no Python that the wheel runs on, no packages, or a TRITON_PYTHON that is of no use.
    """
    if named := os.environ.get("TRITON_PYTHON"):
        return _probe(Path(named), provider)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skip-pipeline"
    folder = cache / ("triton" if provider == "cpu" else f"triton-{provider}")
    ready = folder / ".ready"
    wanted = " ".join((PYTRITON, *packages(provider)))
    with store.lock(folder):
        if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
            # A venv that is half made must not stand under the word of the one before it.
            ready.unlink(missing_ok=True)
            store.remove_unfinished(ready)
            _make(folder / "venv", provider)
            with store.atomic(ready) as temporary:
                temporary.write_text(wanted, encoding="utf-8")
    return _probe(folder / "venv" / "bin" / "python", provider)


def _make(venv: Path, provider: Provider) -> None:
    size = "a minute, 400 MB" if provider == "cpu" else "some minutes, some GB: CUDA's libraries"
    log.info("making the Triton server's environment in %s (once; %s)", venv, size)
    shutil.rmtree(venv, ignore_errors=True)
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [_interpreter(), "-m", "venv", venv],
        [*pip, "--no-deps", PYTRITON],  # its dependencies are those of a client that is not used here
        [*pip, *packages(provider)],
    ):
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            preexec_fn=partial(
                end_with_parent, signal.SIGKILL, os.getpid()
            ),  # or it would write beside the next
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise UserError(f"cannot make the Triton server's environment in {venv}: {lines[-1]}")


def _interpreter() -> str:
    """A Python of a version in PYTHONS, this one if it is."""
    if "{}.{}".format(*sys.version_info[:2]) in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        path = shutil.which(f"python{version}")
        # A shim of pyenv is there even where the version is not.
        if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            return path
    raise UserError(
        f"the Triton wheel needs Python {' or '.join(PYTHONS)}; install one, "
        "or name its interpreter in TRITON_PYTHON"
    )


def _probe(python: Path, provider: Provider) -> Wheel:
    done = subprocess.run(
        [str(python), "-c", _PROBE], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        raise UserError(
            f"{python} has no nvidia-pytriton; unset TRITON_PYTHON, or `{python} -m pip install {PYTRITON}`"
        )
    facts = json.loads(done.stdout)
    if int(facts["numpy"].split(".")[0]) >= 2:  # the stub crashes then, or gives empty tensors
        raise UserError(
            f"{python} has numpy {facts['numpy']}, and the Triton wheel's stub needs numpy below 2"
        )
    package = Path(facts["origin"]).parent
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / facts["version"] / "triton_python_backend_stub"
    if not stub.is_file():
        raise UserError(
            f"the Triton wheel has no Python stub for Python {facts['version']}; use {' or '.join(PYTHONS)}"
        )
    libraries = Path(facts["libdir"]), package.parent / "nvidia_pytriton.libs"
    return Wheel(Path(facts["python"]), root, libraries, stub, provider)
