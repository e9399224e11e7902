from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.engines import build, opening
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.runtime import device_memory, tensorrt_library
from pipeline.runtime.onnxruntime import OnnxRunner
from pipeline.runtime.runner import Limits
from pipeline.store.records import EngineRecord
from pipeline.types import SkipSet, UserError
from tests import commands, needs, tiny
from tests.tiny_engines import HERE, graph


@needs.rtx
def test_a_plan_without_a_gpu_is_refused_in_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build.build(graph())
    with pytest.raises(UserError, match="runs on an NVIDIA GPU only, and none is seen here") as caught:
        opening.open_runner(plan)
    assert "\n" not in str(caught.value)
    if HERE is None:
        for arguments in (["check", str(plan)], ["bench", str(plan), "--unchecked"]):
            done = commands.ended(Path.cwd(), *arguments)
            assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
            (error,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
            assert "runs on an NVIDIA GPU only, and none is seen here" in error
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: "sm89")
    store.write_sidecar(plan, store.engine_sidecar(plan).replaced(backend_version="1.0").plain())
    with pytest.raises(
        UserError, match=r"was built by tensorrt-rtx 1\.0, and .* is installed; build it again"
    ):
        opening.open_runner(plan)


def test_a_graph_opens_in_onnx_runtime_with_the_threads_that_are_named(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    with opening.open_runner(path, threads=1) as runner:
        assert isinstance(runner, OnnxRunner) and runner.path == path
        assert runner.session.get_session_options().intra_op_num_threads == 1


def test_what_is_larger_than_the_bound_is_refused_before_it_is_opened(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are counted in the graph's precision, whatever the checkpoint's."""
    base, half = (
        export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))), precision)
        for precision in ("fp32", "fp16")
    )
    cut = variants.cut(base, SkipSet.parse("mlp1"))
    sizes = [opening.weight_bytes(path) for path in (base, half, cut)]
    assert sizes[0] == 2 * sizes[1] > sizes[2] > sizes[1]
    monkeypatch.setattr(opening, "_graph", lambda path, *_: path)
    monkeypatch.setenv(device_memory.VARIABLE, str(sizes[2] / device_memory.GB))
    with pytest.raises(
        UserError, match=r"^the weights of .*base\.fp32\.onnx need .* GB of the GPU's memory, and"
    ):
        opening.open_runner(base, provider="cuda")
    assert opening.open_runner(base) == base  # on the CPU
    assert [opening.open_runner(path, provider="cuda") for path in (half, cut)] == [half, cut]
    opening.require_room([half], "cuda")
    with pytest.raises(UserError, match="the weights of 2 artefacts need"):
        opening.require_room([half, cut], "cuda")
    with pytest.raises(UserError, match=r"the weights of .*base\.fp16\.onnx need"):
        opening.require_room([half], "cuda", models=2)


def test_what_is_no_artefact_is_refused(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.onnx does not exist"):
        opening.open_runner(Path("nothing.onnx"))
    Path("text.onnx").write_text("hello")
    with pytest.raises(UserError, match=r"text.onnx has no sidecar"):
        opening.open_runner(Path("text.onnx"))


def engine_record(**changes: Any) -> EngineRecord:
    fields = {
        "file": "x.plan",
        "sha256": "a" * 64,
        "bytes": 1,
        "artefact": "engine",
        "model": "m",
        "variant": "base",
        "precision": "fp16",
        "skip": {"attention": [], "mlp": []},
        "folder": "../../../graphs/m",
        "graph": {"file": "base.fp16.onnx", "sha256": "b" * 64},
        "weights": "c",
        "backend": "tensorrt-rtx",
        "backend_version": "1.7",
        "targets": ["sm80", "sm89"],
        "ranges": {"batch": [1, 2, 8], "length": [1, 9, 99], "past": [0, 5, 50], "wanted": [1, 1, 16]},
        "stripped": False,
        "profiles": [{"input_ids": [[1, 1], [1, 9], [8, 99]]}],
    }
    return EngineRecord.model_validate_json(json.dumps({**fields, **changes}))


def test_a_plan_has_what_its_sidecar_says(workdir: Path) -> None:
    path = Path("engines/m/base/x.plan")
    plan = opening.plan_of(engine_record(), path)
    assert (plan.backend, plan.version, plan.targets) == ("tensorrt-rtx", "1.7", ("sm80", "sm89"))
    assert plan.limits == Limits(batch=8, new=99, past=50, wanted=16) and plan.weights is None
    assert plan.profiles == ({"input_ids": ((1, 1), (1, 9), (8, 99))},)


def test_a_stripped_plan_takes_its_weights_from_the_graph_beside_its_project(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = workdir / "graphs" / "m" / "base.fp16.onnx"
    graph.parent.mkdir(parents=True)
    graph.touch()
    plan = workdir / "engines" / "m" / "base" / "x.plan"
    for folder in (workdir, workdir.parent):
        monkeypatch.chdir(folder)
        weights = opening.plan_of(engine_record(stripped=True), plan).weights
        assert weights and weights.samefile(graph)
    monkeypatch.chdir(workdir)
    older = opening.plan_of(engine_record(stripped=True, folder="graphs/m"), plan).weights  # as 0.1 wrote it
    assert older and older.samefile(graph)
