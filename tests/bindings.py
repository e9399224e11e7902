"""The real Python bindings of TensorRT, on a machine without TensorRT, and what they say of themselves.

`tensorrt-cu13-bindings` is a small wheel; its libraries, of gigabytes, are not needed to import it: stubs
with the nine functions that it calls are enough. No object of TensorRT's can be made then, but every class,
method, parameter and enum member is there to be read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from tests import needs

VERSIONS = ("11.4.0.106", "10.16.1.11", "10.14.1.48.post1")
"""Of TensorRT: the newest of either line, and the oldest that pyproject.toml lets in."""

_STUBS = """
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void *logger, const char *name) { return 1; }
"""
_LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")

_DESCRIPTION = """
import importlib, inspect, json, sys
trt = importlib.import_module(sys.argv[1])
def described(name):
    kind = trt
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if kind is None:
        return None
    members = {}
    for member in dir(kind):
        static = inspect.getattr_static(kind, member)
        value = getattr(kind, member)
        if isinstance(static, property):
            members[member] = {"property": True, "set": static.fset is not None}
        elif callable(value):
            members[member] = {"doc": value.__doc__ or ""}
        else:
            members[member] = {"text": str(value)}
    doc = str(inspect.signature(kind)) if inspect.isfunction(kind) else ""
    bases = [base.__qualname__ for base in getattr(kind, "__mro__", ())]
    return {"members": members, "bases": bases, "signature": doc}
print(json.dumps({name: described(name) for name in sys.argv[2:]}))
"""


@dataclass(frozen=True, slots=True)
class Bindings:
    """Bindings that can be imported in a process of its own.

    Attributes:
        module: its name.
        environment: of the process.
    """

    module: str
    environment: dict[str, str]

    def described(self, names: list[str]) -> dict[str, Any]:
        """Class or function → its members, bases and signature; None for what is not there."""
        return json.loads(self.run(_DESCRIPTION, self.module, *names).stdout)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A script, where the bindings can be imported."""
        line = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done


def tensorrt(version: str) -> Bindings:
    """The bindings of a version of TensorRT, from the user's cache; the first time from the package index."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skip-pipeline" / "tests"
    folder = cache / f"tensorrt-{version}-{sys.implementation.cache_tag}"
    with store.lock(folder):
        if not (folder / "whole").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder / "packages", version)
            _compile(folder / "libraries", version.split(".", maxsplit=1)[0])
            (folder / "whole").touch()
    python_path = os.pathsep.join([str(folder / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])])
    paths = {"PYTHONPATH": python_path, "LD_LIBRARY_PATH": str(folder / "libraries")}
    return Bindings("tensorrt_bindings", {**os.environ, **paths})


def tensorrt_rtx() -> Bindings:
    """Those of TensorRT-RTX, which are installed with their libraries."""
    if not needs.installed("tensorrt_rtx"):
        pytest.skip("TensorRT-RTX is not installed: pip install 'skip-pipeline[rtx]'")
    return Bindings("tensorrt_rtx_bindings", dict(os.environ))


def _install(folder: Path, version: str) -> None:
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target"]
    line += [str(folder), f"tensorrt-cu13-bindings=={version}"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"tensorrt-cu13-bindings {version} cannot be had from the package index: {reason}")


def _compile(folder: Path, major: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler is here to make the stub libraries of TensorRT")
    folder.mkdir(parents=True)
    source = folder / "stubs.c"
    source.write_text(_STUBS)
    for name in _LIBRARIES:
        target = str(folder / f"{name}.so.{major}")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(source)], check=True)


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a method.

    Attributes:
        parameters: name → whether it can be left out; without `self`.
        result: the type's name in small letters, as 'bool'.
    """

    parameters: dict[str, bool]
    result: str


def signatures(name: str, doc: str) -> list[Signature]:
    """The ways to call a method, as pybind11 writes them at the head of its docstring."""
    found = re.findall(rf"(?m)^(?:\d+\. )?{re.escape(name)}\((self: .*)\) -> (.+)$", doc)
    return [Signature(_parameters(text), re.split(r"\.|::", result)[-1].lower()) for text, result in found]


def _parameters(text: str) -> dict[str, bool]:
    """`self: A, b: C[D, E] = F` → {'b': True}; commas in brackets part nothing."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return {part.split(":")[0].strip(): " = " in part for part in parts[1:]}
