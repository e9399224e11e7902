"""The house rules that a machine can hold: imports run one way, --help is fast and needs little, files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "pipeline"
LOWER = [  # each may import those before it and its own group
    {"types"},
    {"store", "safetensors_index", "checkpoint", "gguf_import", "arguments"},
    {
        "texts",
        "costs",
        "graphfile",
        "architectures",
        "anatomy",
        "lint",
        "reference",
        "similarity",
        "streams",
        "removal",
        "adapters",
        "selectors",
        "backends",
        "stopwatch",
        "agreement",
        "localize",
        "scripted",
        "contestants",
        "latency",
        "generation",
        "triton",
    },
    {"budget", "scoring"},
    {"figures"},
]
STAGES = {
    "export",
    "skip",
    "merge",
    "build",
    "compare",
    "bench",
    "score",
    "calibrate",
    "heal",
    "show",
    "doctor",
    "deploy",
    "serve",
    "sweep",
    "report",
}
HEAVY = {
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "transformers",
    "optimum",
    "tensorrt",
    "polygraphy",
    "safetensors",
    "gguf",
    "tokenizers",
    "lm_eval",
    "datasets",
    "pandas",
    "pyarrow",
    "peft",
    "scipy",
    "matplotlib",
    "tritonclient",
    "fastapi",
    "uvicorn",
    "ray",
    "plotly",
    "mlflow",
    "jinja2",
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports; `from pipeline import store` counts as pipeline.store."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = room(path)
    if here in ("cli", "chains", "demo", "__init__"):
        return
    theirs = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")} - {"__version__", here}
    if here in STAGES:
        assert not theirs & (STAGES | {"cli"}), "stages never import each other"
        return
    level = next((k for k, group in enumerate(LOWER) if here in group), None)
    assert level is not None, f"{here} is no room of the design: give it a level here"
    assert theirs <= set().union(*LOWER[: level + 1])


def test_cli_imports_its_stages_inside_functions() -> None:
    commands = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "cli").glob("*.py"))
    for path in commands:
        top = imports(ROOT / path, top_level_only=True)
        assert {n.split(".")[1] for n in top if n.startswith("pipeline.")} <= {"store", "types", "arguments", "chains", "cli"}
    for lean in ("types.py", "store.py", *commands, "chains.py", "checkpoint.py", "safetensors_index.py"):
        assert not {n.split(".")[0] for n in imports(ROOT / lean, top_level_only=True)} & HEAVY, lean


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 320
    long = {
        n.name: n.end_lineno - n.lineno + 1 for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and room(path) != "cli"
    }
    assert not {name: lines for name, lines in long.items() if lines > 55}
    if path.name != "__main__.py":
        assert ast.get_docstring(tree), f"{path.name} does not say what it is for"


def test_help_in_a_bare_environment(tmp_path: Path) -> None:
    """With only typer, rich and numpy to be found, `--help` of every command answers, and quickly."""
    script = (
        "import sys, time\n"
        f"heavy = {sorted(HEAVY)!r}\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in heavy: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from pipeline import cli\n"
        "sys.argv = ['pipeline', *sys.argv[1:]]\n"
        "cli.main()\n"
    )
    for command in (
        [],
        ["export"],
        ["check"],
        ["build-engine"],
        ["bench"],
        ["score"],
        ["show"],
        ["merge"],
        ["generate"],
        ["ship"],
        ["serve"],
        ["sweep"],
        ["list"],
        ["doctor"],
        ["report"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *command, "--help"], capture_output=True, text=True, cwd=ROOT.parent, check=False
        )
        assert done.returncode == 0 and "Usage" in done.stdout, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor"], capture_output=True, text=True, cwd=ROOT.parent, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_loads_no_heavy_module() -> None:
    """The time of `--help` is imports: none of the heavy ones may be among them."""
    script = f"import sys; from pipeline import cli; print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert done.stdout.strip() == "[]"
