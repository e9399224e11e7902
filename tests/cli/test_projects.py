"""A project is a folder: commands work on its artefacts from any other, and write only there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pipeline import store
from pipeline.cli.commands import app
from pipeline.store import records
from pipeline.types import SkipSet, UserError, Variant
from tests import tiny
from tests.commands import run

MODEL = "my model é"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its base, a variant, and an engine that is a sidecar and no more."""
    root = tmp_path_factory.mktemp("else where é")
    tiny.tokenizer(tiny.checkpoint(root / "models" / MODEL, vocab_size=tiny.WORDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for skip in ((), ("--skip", "mlp1")):
            app(["export", f"models/{MODEL}", *skip], standalone_mode=False)
    _engine(root, root / "graphs" / MODEL / "mlp1.fp32.onnx")
    return root


def _engine(root: Path, graph: Path) -> Path:
    """The engine of a graph, as far as its sidecar goes."""
    sidecar = store.graph_sidecar(graph)
    path = store.Project(root).engine(MODEL, "mlp1", "tensorrt-rtx", "sm80", "fp32")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"plan")
    fields = {
        **records.variant_fields(Variant(MODEL, SkipSet(mlp=(1,)))),
        "artefact": "engine",
        "folder": store.relative(graph.parent, path),
        "graph": {"file": graph.name, "sha256": sidecar.sha256},
        "weights": sidecar.weights,
        "backend": "tensorrt-rtx",
        "backend_version": "1.3",
        "targets": ["sm80"],
        "ranges": dict.fromkeys(("batch", "length", "past", "wanted"), (1, 1, 8)),
        "stripped": False,
    }
    store.write_sidecar(path, fields)
    return path


@pytest.fixture
def elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another current directory, in which nothing is to be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIPELINE_MODEL", raising=False)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_check_bench_show_and_generate_from_elsewhere(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = project / "graphs" / MODEL / "mlp1.fp32.onnx"
    results = project / "evals" / "results" / MODEL
    assert run(capsys, "check", graph).startswith(f"passed  {graph}")
    record = records.read(records.CheckRecord, results / "mlp1.fp32.check.json")
    assert record.artefact == f"../../../graphs/{MODEL}/mlp1.fp32.onnx"
    assert store.resolved(record.artefact, results / "mlp1.fp32.check.json") == graph

    report = json.loads(run(capsys, "bench", graph, "--sequences", "3", "--lengths", "4", "--json"))
    assert [row["name"] for row in report["rows"]] == ["base.fp32", "mlp1.fp32"]
    assert report["results"] == [str(results / f"{name}.fp32.bench.json") for name in ("base", "mlp1")]
    assert report["rows"][1]["peak_mb"] > report["rows"][1]["before_mb"] > 0

    words = run(capsys, "show", graph)
    assert words.startswith(f"{graph}: mlp1, fp32, check passed") and "MLP [1] of 2 layers" in words
    prompt = "the time"
    text = run(capsys, "generate", graph, prompt, "--max-tokens", "3")
    assert text.startswith(prompt) and len(text) > len(prompt) + 1


def test_show_of_an_engine_from_elsewhere(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = project / "engines" / MODEL / "mlp1" / "tensorrt-rtx-sm80-fp32.plan"
    shown = json.loads(run(capsys, "show", plan, "--json"))
    assert shown["variant"] == "mlp1" and shown["left_out"] == {"attention": [], "mlp": [1], "of_layers": 2}
    assert shown["sidecar"]["folder"] == f"../../../graphs/{MODEL}"
    assert store.checkpoint_folder(plan) == project / "graphs" / MODEL


def test_a_project_may_be_moved(
    project: Path,
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every path in a record is relative to the record."""
    run(capsys, "check", project / "graphs" / MODEL / "base.fp32.onnx")
    moved = tmp_path_factory.mktemp("moved") / "here"
    project.rename(moved)
    try:
        base = moved / "graphs" / MODEL / "base.fp32.onnx"
        assert "(already checked)" in run(capsys, "check", base)
        plan = moved / "engines" / MODEL / "mlp1" / "tensorrt-rtx-sm80-fp32.plan"
        assert run(capsys, "show", plan).startswith(f"{plan}: mlp1")
    finally:
        moved.rename(project)


def test_list_is_of_the_current_directory(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    entries = json.loads(run(capsys, "list", "--json"))[MODEL]
    assert [Path(entry["path"]).name for entry in entries] == [
        "base.fp32.onnx",
        "mlp1.fp32.onnx",
        "tensorrt-rtx-sm80-fp32.plan",
    ]


def test_printed_commands_quote_the_name(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = project / "graphs" / MODEL / "mlp1.fp32.onnx"
    result = store.result_of(graph, "check")
    result.unlink(missing_ok=True)
    with pytest.raises(UserError) as error:
        run(capsys, "score", graph, "--tasks", "smoke", "--together")
    command = str(error.value).split("`")[1]
    assert shlex.split(command) == ["pipeline", "check", str(graph)]
