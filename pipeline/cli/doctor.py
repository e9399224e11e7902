"""What this machine can run, what is missing, and the command that adds it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__, store
from pipeline.cli import extras
from pipeline.cli.app import LOOK, Json, app, show_result
from pipeline.cli.engines import BACKEND_EXTRAS

_PACKAGES = (
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxruntime-gpu",
    "polygraphy",
    "numpy",
    "safetensors",
)
"""What every stage stands on."""
_TENSORRT = {"tensorrt-rtx": "tensorrt-rtx-cu13-bindings", "tensorrt": "tensorrt-cu13"}
"""Backend → the package that brings it."""
_BACKEND_EXTRAS = ("rtx", "tensorrt", "serve")
"""Extras that stand among the backends."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine.

    Attributes:
        cpus: processors that it has.
        gpus: name, driver and compute capability of each.
    """

    system: str
    python: str
    cpus: int | None
    gpus: list[str]


@dataclass(frozen=True, slots=True)
class Backend:
    """Something that runs or builds artefacts.

    Attributes:
        version: that is installed; None where it is not.
        can: what it can do on this machine.
        providers: of ONNX Runtime.
        lacks: what it needs to do more.
        add: the command that installs it.
    """

    version: str | None
    can: list[str]
    providers: list[str] | None = None
    lacks: str | None = None
    add: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON: without what does not apply."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if fields[name] is not None or name == "version"}

    def text(self) -> str:
        """For a person."""
        abilities = ", ".join(self.can) or "nothing yet"
        lack = f"; lacks {self.lacks}" if self.lacks else ""
        return f"{self.version or 'not installed'}: {abilities}{lack}"


@dataclass(frozen=True, slots=True)
class Models:
    """The models that are here.

    Attributes:
        local: those under graphs/.
        built_in: name → version of its package; None where it is not installed.
        hub_cache: the folder of downloads.
    """

    local: list[str]
    built_in: dict[str, str | None]
    hub_cache: str


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that `pipeline doctor` looks at.

    Attributes:
        packages: name → version that is installed.
        extras: name → what of it is not installed.
        disk_free_gb: in the current directory.
    """

    machine: Machine
    packages: dict[str, str | None]
    backends: dict[str, Backend]
    extras: dict[str, list[str]]
    models: Models
    disk_free_gb: float

    @property
    def missing(self) -> dict[str, str]:
        """What is not installed → the command that adds it."""
        packages = {name: f"pip install {name}" for name, version in self.packages.items() if version is None}
        backends = {name: backend.add for name, backend in self.backends.items() if backend.add}
        absent = {name: extras.install_command(name) for name, modules in self.extras.items() if modules}
        built_in = {f"{name} model": command for name, command in self._commands().items()}
        return {**packages, **backends, **absent, **built_in}

    def _commands(self) -> dict[str, str]:
        """Built-in models that are not installed → the command that adds them."""
        from pipeline.models.demo import MODELS

        return {name: MODELS[name].command for name, version in self.models.built_in.items() if not version}

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": asdict(self.machine),
            "packages": self.packages,
            "backends": {name: backend.plain() for name, backend in self.backends.items()},
            "extras": self.extras,
            "models": {
                "architectures": _architectures(),
                "under graphs/": self.models.local,
                **self.models.built_in,
                **{name: {"add": command} for name, command in self._commands().items()},
                "hub cache": self.models.hub_cache,
            },
            "disk_free_gb": self.disk_free_gb,
            "missing": self.missing,
        }

    def text(self) -> str:
        """For a person."""
        machine = self.machine
        missing = [f"{name}: {command}" for name, command in self.missing.items()] or ["nothing"]
        rows = [
            ("GPU", ", ".join(machine.gpus) or "none seen (nvidia-smi)"),
            ("disk", f"{self.disk_free_gb} GB free here"),
            *((name, backend.text()) for name, backend in self.backends.items()),
            *((name, version or "not installed") for name, version in self.packages.items()),
            *((f"[{name}]", _extra_words(modules)) for name, modules in self.extras.items()),
            ("architectures", ", ".join(_architectures())),
            ("models", ", ".join(self.models.local) or "none under graphs/"),
            *(
                (f"{name} model", version or "not installed")
                for name, version in self.models.built_in.items()
            ),
            *(("missing", words) for words in missing),
        ]
        head = f"skip-pipeline {__version__}, Python {machine.python}, {machine.system}, {machine.cpus} CPUs"
        return "\n".join([head, *(f"{name:<14} {words}" for name, words in rows)])


def _architectures() -> list[str]:
    """The model_types that graphs are authored of; others come through `--from-onnx`."""
    from pipeline.models.config import known

    return known()


def _extra_words(modules: list[str]) -> str:
    return f"lacks {', '.join(modules)}" if modules else "installed"


def examine() -> Examination:
    """Looks at everything; nothing is imported that is not installed."""
    gpus = _gpus()
    return Examination(
        Machine(platform.platform(), platform.python_version(), os.cpu_count(), gpus),
        {name: store.version(name) for name in _PACKAGES},
        _backends(bool(gpus)),
        {name: extras.missing(name) for name in extras.EXTRAS if name not in _BACKEND_EXTRAS},
        Models(store.models(), _built_in_versions(), _hub_cache()),
        round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    )


def _gpus() -> list[str]:
    """Names and drivers of the NVIDIA GPUs, by the driver's own tool."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(
        query, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
    )
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _backends(has_gpu: bool) -> dict[str, Backend]:
    engines = {name: _tensorrt(name, has_gpu) for name in _TENSORRT}
    return {"onnxruntime": _onnxruntime(has_gpu), **engines, "triton": _triton()}


def _onnxruntime(has_gpu: bool) -> Backend:
    try:
        providers = importlib.import_module("onnxruntime").get_available_providers()
    except ImportError as error:  # not installed, or installed without a library that it needs
        return Backend(None, [], lacks=str(error), add="pip install onnxruntime-gpu")
    can = ["check", "bench", "generate"]
    if has_gpu and "CUDAExecutionProvider" in providers:
        can.append("on the GPU")
    return Backend(store.version("onnxruntime-gpu") or store.version("onnxruntime"), can, providers)


def _tensorrt(name: str, has_gpu: bool) -> Backend:
    version = store.version(_TENSORRT[name]) or (store.version("tensorrt") if name == "tensorrt" else None)
    if version is None:
        return Backend(None, [], add=extras.install_command(BACKEND_EXTRAS[name]))
    if has_gpu:
        return Backend(version, ["build-engine", "check", "bench"])
    can = ["build-engine (for any target)"] if name == "tensorrt-rtx" else []
    return Backend(version, can, lacks="an NVIDIA GPU with its driver, to run engines")


def _triton() -> Backend:
    if lacking := extras.missing("serve"):
        return Backend(None, [], lacks=", ".join(lacking), add=extras.install_command("serve"))
    return Backend(f"client {store.version('tritonclient')}", ["ship", "serve"])


def _built_in_versions() -> dict[str, str | None]:
    from pipeline.models.demo import MODELS

    return {name: store.version(model.package) for name, model in MODELS.items()}


def _hub_cache() -> str:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return f"{home} ({'there' if home.is_dir() else 'empty'})"


@app.command(rich_help_panel=LOOK)
def doctor(as_json: Json = False) -> None:
    """What this machine can run, what is missing, and the command that adds it.

    Example: `pipeline doctor`
    """
    examination = examine()
    show_result(examination.plain(), as_json, examination.text())
