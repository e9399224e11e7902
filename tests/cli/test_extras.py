"""A command whose extra is not installed says which to install, in one line, with exit code 2."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.cli import extras
from pipeline.types import UserError
from tests import tiny

BLOCKED = """
import sys
blocked = set(sys.argv.pop(1).split(","))
class Hider:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hider, sys.meta_path)
from pipeline import cli
cli.main()
"""


def without(modules: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process that finds none of these modules."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, modules, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=tiny.environment(),
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("lm_eval", "score x.onnx", "score"),
        ("cachetools", "lm-eval --help", "score"),
        ("datasets", "bench x.onnx --tasks smoke", "score"),
        ("optimum", "bench x.onnx --compare torch,optimum", "optimum"),
        ("peft", "heal x.onnx", "heal"),
        ("matplotlib", "figures m", "report"),
        ("plotly", "report", "report"),
        ("tritonclient", "ship x.onnx --to triton out", "serve"),
        ("fastapi", "serve out", "serve"),
        ("ray", "sweep x.toml --ray local", "ray"),
        ("tensorrt_rtx,tensorrt_rtx_bindings", "build-engine x.onnx", "rtx"),
        ("tensorrt,tensorrt_bindings", "build-engine x.onnx --backend tensorrt", "tensorrt"),
    ],
)
def test_the_missing_extra_is_named(module: str, command: str, extra: str, tmp_path: Path) -> None:
    done = without(module, *command.split(), folder=tmp_path)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    name = {"optimum": "optimum.exporters.onnx"}.get(module, module.split(",")[0])
    assert line.startswith(f"error: `pipeline {command.split()[0]}")
    where = ", in an environment of its own: optimum-onnx holds transformers below 4.58" * (
        extra == "optimum"
    )
    assert line.endswith(f"needs {name}; run `pip install 'skip-pipeline[{extra}]'`{where}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bench_prints_the_scores_that_exist_without_the_extra(tmp_path: Path) -> None:
    """The core install benches: it gets as far as the missing file."""
    everything = ",".join(
        name
        for extra in ("score", "heal", "report", "serve", "ray")
        for names in extras.EXTRAS[extra]
        for name in names
    )
    done = without(everything, "bench", "x.onnx", folder=tmp_path)
    assert done.returncode == 2 and "x.onnx does not exist" in done.stderr


def test_several_missing_modules_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "score", (("json",), ("no_such_a",), ("no_such_b.part", "no_such_c")))
    assert extras.missing("score") == ["no_such_a", "no_such_b.part"]
    with pytest.raises(UserError, match=r"`pipeline x` needs no_such_a, no_such_b\.part; run `pip install"):
        extras.needs("score", "pipeline x")


def test_one_of_several_names_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "rtx", (("no_such_a", "json"),))
    extras.needs("rtx", "pipeline x")


def test_the_extras_are_those_of_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(extras.EXTRAS) <= set(project["optional-dependencies"])
    for extra, modules in extras.EXTRAS.items():
        packages = " ".join(project["optional-dependencies"][extra]).replace("-", "_")
        for names in modules:
            assert any(part in packages for part in names[0].split(".")), (extra, names)
