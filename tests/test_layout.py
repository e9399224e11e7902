"""The house rules that a machine can hold: imports run one way, --help is fast, files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "pipeline"
LEVELS: tuple[tuple[str, ...], ...] = (
    ("__init__",),
    ("types",),
    ("store", "runtime"),
    ("models",),
    ("calib", "graphs"),
    ("engines",),
    ("evals",),
    ("report", "ship", "sweep"),
    ("cli",),
)
"""A folder imports itself and those on levels above its own in this list, never one beside it or below it."""
ENTRIES = {name for level in LEVELS for name in level}
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
    "httpx",
    "psutil",
    "cachetools",
}
COMMANDS = [
    "export",
    "merge",
    "calibrate",
    "select",
    "heal",
    "build-engine",
    "check",
    "bench",
    "score",
    "predict",
    "report",
    "figures",
    "sweep",
    "generate",
    "ship",
    "serve",
    "list",
    "show",
    "doctor",
]


def room(path: Path) -> str:
    """The entry of the package's root that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.Module, top_level_only: bool = False) -> set[str]:
    """Dotted names that a module imports; `from pipeline import store` counts as pipeline.store."""
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def violations(here: str, tree: ast.Module) -> list[str]:
    """What a module of the folder `here` imports and must not."""
    level = next(k for k, rooms in enumerate(LEVELS) if here in rooms)
    allowed = {name for rooms in LEVELS[:level] for name in rooms} | {here}
    if here == "runtime":
        allowed = {"types", "runtime"}  # a shipped Triton model carries both, and nothing else
    found = set()
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "pipeline" and len(parts) > 1:
            theirs = parts[1] if parts[1] in ENTRIES else "__init__"
            found |= {name} if theirs not in allowed else set()
    return sorted(found)


FILES = sorted(ROOT.rglob("*.py"))


def test_the_root_holds_the_entries_of_the_map() -> None:
    found = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert found == ENTRIES


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    assert violations(room(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("here", "line"),
    [
        ("graphs", "from pipeline.engines import build"),
        ("calib", "from pipeline.graphs import anatomy"),
        ("graphs", "def f():\n    from pipeline.calib.heal import heal"),
        ("evals", "from pipeline import cli"),
        ("ship", "import pipeline.report.tables"),
        ("runtime", "from pipeline import store"),
        ("models", "import pipeline.calib.heal as heal"),
    ],
)
def test_a_planted_violation_is_caught(here: str, line: str) -> None:
    assert violations(here, ast.parse(line))


def test_stages_of_evals_do_not_import_each_other() -> None:
    stages = {"check", "bench", "score", "predict"}
    for path in (ROOT / "evals").rglob("*.py"):
        here = path.relative_to(ROOT / "evals").parts[0]
        theirs = {
            n.split(".")[2] for n in imports(ast.parse(path.read_text())) if n.startswith("pipeline.evals.")
        }
        assert not (theirs & stages) - {here}, path


def test_cli_imports_its_stages_inside_functions() -> None:
    lean = {"store", "types", "cli", "models", "__version__"}
    for path in (ROOT / "cli").rglob("*.py"):
        names = imports(ast.parse(path.read_text()), top_level_only=True)
        assert {n.split(".")[1] for n in names if n.startswith("pipeline.")} <= lean, path
    for path in [ROOT / "types.py", *(ROOT / "store").glob("*.py"), *(ROOT / "cli").glob("*.py")]:
        assert (
            not {n.split(".")[0] for n in imports(ast.parse(path.read_text()), top_level_only=True)} & HEAVY
        ), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 300
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {
        n.name: length
        for n in functions
        if room(path) != "cli" and (length := (n.end_lineno or 0) - n.lineno + 1) > 40
    }
    assert not long
    if path.name != "__main__.py":
        assert ast.get_docstring(tree), f"{path.name} does not say what it is for"


UNTESTED = {"ship/triton/in_triton/model.py"}  # four lines that Triton runs; test_versions.py runs them too


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tests_mirror_the_package(path: Path) -> None:
    """A module has a test file of its name, or its whole folder has one."""
    module = path.relative_to(ROOT)
    if path.name.startswith("__") or module.as_posix() in UNTESTED:
        return
    tests = ROOT.parent / "tests"
    own = tests / module.parent / f"test_{module.stem.lstrip('_')}.py"
    whole = tests / module.parent.parent / f"test_{module.parent.name}.py"
    assert own.is_file() or whole.is_file(), f"write {own.relative_to(ROOT.parent)}"


def test_no_class_name_twice() -> None:
    """But for the plug-in names: one `Architecture` a file, and the class that Triton looks for."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert set(twice) <= {"Architecture", "TritonPythonModel"}, twice


@pytest.mark.slow
def test_help_in_a_bare_environment() -> None:
    """With only typer, rich and numpy to be found, `--help` of every command answers."""
    script = (
        "import sys\n"
        f"heavy = {sorted(HEAVY)!r}\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in heavy: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from pipeline import cli\n"
        "sys.argv = ['pipeline', *sys.argv[1:]]\n"
        "cli.main()\n"
    )
    for arguments in ["--help"], *([command, "--help"] for command in COMMANDS), ["doctor"]:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT.parent,
            check=False,
        )
        assert done.returncode == 0 and ("Usage" in done.stdout or arguments == ["doctor"]), done.stderr


def test_help_loads_no_heavy_module() -> None:
    """The time of `--help` is imports: none of the heavy ones may be among them."""
    script = f"import sys; from pipeline import cli; print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True
    )
    assert done.stdout.strip() == "[]"
