"""What a version of NAME_generate carries, and that it runs with nothing else of this project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import store
from pipeline.models import tokenizer
from pipeline.runtime.generation.prompts import Prompts
from pipeline.ship.triton import repository, ship, versions
from pipeline.ship.triton.in_triton.artefact import ServedArtefact
from tests import serving, tiny
from tests.serving import plan

FORBIDDEN = (
    "torch", "onnx", "onnx_ir", "transformers", "polygraphy", "pydantic", "safetensors", "httpx",
    "tritonclient", "typer", "rich", "psutil",
)  # fmt: skip
"""What a Triton server need not have."""
SCRIPT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, BACKEND)
import triton_backend
triton_backend.install()
sys.path.insert(0, ".")
from model import TritonPythonModel
import json, pathlib
import pipeline.runtime.onnxruntime
from pipeline.runtime.generation.prompts import Prompts
files = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "pipeline"}
print(json.dumps({"files": files, "tokens": Prompts.load(pathlib.Path(".")).encode("the time")}))
"""


@pytest.fixture
def repo(workdir: Path) -> Path:
    folder = Path("engines/triton").resolve()
    ship.ship(serving.project(workdir, ("attn2-3",)), folder)
    return folder


def test_the_carried_code_is_types_runtime_and_the_model(repo: Path) -> None:
    folder = repo / "tiny-attn2-3_generate" / "1"
    package = versions.PACKAGE
    wanted = {
        package / name for name in ("__init__.py", "types.py", "ship/__init__.py", "ship/triton/__init__.py")
    }
    wanted |= {*(package / "runtime").rglob("*.py"), *(package / versions.IN_TRITON).glob("*.py")}
    carried = {
        path.relative_to(folder / "pipeline") for path in folder.rglob("pipeline/**/*") if path.is_file()
    }
    assert carried == {path.relative_to(package) for path in wanted}
    for file in carried:
        assert (folder / "pipeline" / file).read_bytes() == (package / file).read_bytes()
    assert (folder / "model.py").read_bytes() == (package / versions.IN_TRITON / "model.py").read_bytes()
    others = {"model.py", "artefact.json", "tokenizer.json", "generation.json", "pipeline"}
    assert {path.name for path in folder.iterdir()} == others


def test_the_model_needs_nothing_else_of_this_project(repo: Path) -> None:
    folder = repo / "tiny-attn2-3_generate" / "1"
    backend = str(Path(__file__).parents[2])
    script = f"FORBIDDEN = {FORBIDDEN!r}\nBACKEND = {backend!r}\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "pipeline.ship.triton.in_triton.generate_model" in seen["files"]
    assert all(Path(file).is_relative_to(folder / "pipeline") for file in seen["files"].values()), seen
    assert seen["tokens"] == list(tokenizer.load(Path("graphs/tiny")).encode("the time"))
    assert seen["tokens"] == Prompts.load(folder).encode("the time")


def test_artefact_json_names_every_file_of_the_artefact(repo: Path) -> None:
    artefact = ServedArtefact.read(repo / "tiny-attn2-3_generate" / "1")
    home = repo / "tiny-attn2-3" / "1"
    assert artefact.graph == "tiny-attn2-3/1/model.onnx/model.onnx"
    assert artefact.plan is None and artefact.engine is None
    files = {str(path.relative_to(repo)): store.sha256(path) for path in home.rglob("*") if path.is_file()}
    assert artefact.files == files
    artefact.verify(repo)
    version = repository.newest(repository.read(repo))["tiny-attn2-3"][1]
    assert set(version.files) > set(files)
    assert set(version.needs) == {"python", "numpy", "tokenizers", "jinja2", "onnxruntime"}


def test_a_plan_says_what_its_runner_must_know(workdir: Path) -> None:
    graph = serving.project(workdir, ("base",))[0]
    tiny.passed(plan(graph, "tensorrt"), None)
    repo = Path("engines/triton").resolve()
    record = ship.ship([plan(graph, "tensorrt")], repo, name="trt").record
    artefact = ServedArtefact.read(repo / "trt_generate" / "1")
    assert artefact.plan == "trt/1/model.plan" and artefact.graph == "trt/1/graph/model.onnx"
    engine = artefact.engine
    assert (engine.backend, engine.version, engine.targets) == ("tensorrt", "11.1.0", ("sm80",))
    assert engine.profiles == ({"input_ids": ((1, 1), (1, 100), (8, 512))},) and engine.weights is None
    assert (engine.limits.batch, engine.limits.new, engine.limits.past, engine.limits.wanted) == (
        8,
        512,
        512,
        1,
    )
    needs = repository.newest(record)["trt"][1].needs
    assert needs["tensorrt"] == "11.1.0, exactly" and needs["gpu"] == "sm80" and "polygraphy" in needs
