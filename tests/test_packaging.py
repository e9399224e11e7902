"""What an installation needs: every package is declared, and the core commands import no extra."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "tensorrt": "tensorrt-cu13",
    "tensorrt_rtx": "tensorrt-rtx-cu13-bindings",
    "mlflow": "mlflow-skinny",
    "optimum": "optimum",
}
"""Imported name → distribution, where the names differ and the package may not be installed."""
PROVIDED = {
    "markupsafe": "jinja2",
    "google": "onnx",
    "requests": "huggingface-hub",
    "huggingface_hub": "huggingface-hub",
    "starlette": "fastapi",
}
"""Imported name → the declared distribution that brings it."""
CORE = [
    "calib.calibrate",
    "calib.latency_budget",
    "calib.search",
    "calib.selectors",
    "engines.build",
    "engines.lint",
    "engines.opening",
    "evals.bench.bench",
    "evals.check.check",
    "graphs.export",
    "graphs.merge",
    "graphs.variants",
    "models.checkpoint",
    "models.gguf.convert",
    "runtime.generation.alone",
    "sweep.sweep",
]
"""Modules of the commands that work without an extra."""


def name_of(requirement: str) -> str:
    """'lm-eval[hf]>=0.4' → 'lm-eval'."""
    return re.split(r"[\[<>=! ;]", requirement)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    """The distributions of the core installation and of some extras."""
    return {name_of(text) for text in [*PROJECT["dependencies"], *(t for e in extras for t in EXTRAS[e])]}


installed = cache(importlib.metadata.packages_distributions)


@cache
def distribution(module: str) -> str:
    """The distribution that a third-party import is of."""
    known = DISTRIBUTIONS.get(module) or PROVIDED.get(module)
    return known or installed().get(module, [module])[0].lower().replace("_", "-")


@cache
def imports(file: Path) -> tuple[set[str], set[str]]:
    """(names that a module imports when it is imported itself, names that it imports anywhere)."""
    tree = ast.parse(file.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return names(top), names(list(ast.walk(tree)))


def names(nodes: list[ast.AST] | list[ast.Import | ast.ImportFrom]) -> set[str]:
    found = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def file_of(name: str) -> Path | None:
    """The file of a module of this package."""
    path = ROOT / Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def third_party(imported: set[str]) -> set[str]:
    roots = {name.split(".")[0] for name in imported}
    return roots - {"pipeline", "__future__"} - set(sys.stdlib_module_names)


def loaded_with(module: str) -> dict[str, set[str]]:
    """Third-party package → the modules of this package that import it when `module` is imported."""
    packages: dict[str, set[str]] = {}
    seen, left = set[str](), [f"pipeline.{module}"]
    while left:
        name = left.pop()
        file = file_of(name)
        if file is None or name in seen:
            continue
        seen.add(name)
        top, _ = imports(file)
        for package in third_party(top):
            packages.setdefault(package, set()).add(name)
        parents = [name.rsplit(".", 1)[0]] if "." in name else []
        left += [*parents, *(other for other in top if other.startswith("pipeline."))]
    return packages


def test_every_package_that_is_imported_is_declared() -> None:
    known = declared(*EXTRAS)
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        missing = {name for name in third_party(imports(file)[1]) if distribution(name) not in known}
        assert not missing - {"triton_python_backend_utils"}, f"{file} imports {missing}"


@pytest.mark.parametrize("module", CORE)
def test_a_core_command_imports_no_extra(module: str) -> None:
    assert file_of(f"pipeline.{module}") is not None
    foreign = {
        package: files
        for package, files in loaded_with(module).items()
        if distribution(package) not in declared()
    }
    assert not foreign


def test_all_is_everything_that_runs_without_a_gpu() -> None:
    """But optimum-onnx, which holds transformers below 4.58: an environment of its own."""
    (everything,) = EXTRAS["all"]
    listed = set(everything.partition("[")[2].rstrip("]").split(","))
    assert set(EXTRAS) - listed == {"all", "test", "dev", "tensorrt", "qlora", "optimum"}


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", set(EXTRAS) - {"tensorrt", "qlora", "optimum"}),
        ("constraints-optimum.txt", {"optimum", "sentencepiece"}),
    ],
)
def test_every_declared_package_is_pinned(file: str, extras: set[str]) -> None:
    lines = (ROOT / file).read_text().splitlines()
    pinned = {name_of(line) for line in lines if line and line[0] != "#"}
    assert not declared(*extras) - {"skip-pipeline"} - pinned
    assert all("==" in line for line in lines if line and line[0] != "#")
