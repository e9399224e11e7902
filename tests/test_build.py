"""TensorRT-RTX really builds on a CPU: every skip kind, every target here; and what goes wrong leaves no plan."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline import backends, build, checkpoint, export, skip, store
from pipeline.backends import tensorrt
from pipeline.types import SkipSet, UserError
from tests import tiny

HAS_RTX = importlib.util.find_spec("tensorrt_rtx_bindings") or importlib.util.find_spec("tensorrt_rtx")
rtx = [
    pytest.mark.rtx,
    pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX is not installed: pip install 'skip-pipeline[rtx]'"),
]
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        tensorrt.gpu_target() is None, reason="no NVIDIA GPU is seen here: TensorRT builds and engines run on one only"
    ),
]
SMALL = {"batch": (1, 1, 2), "length": (1, 8, 32), "past": (0, 8, 32)}


def base(workdir: Path, model_type: str = "llama", precision: str = "fp16", **changes: object) -> Path:
    folder = tiny.checkpoint(workdir / "tiny", model_type, **changes)
    return export.export_base(checkpoint.resolve(str(folder)), precision)


@pytest.mark.parametrize("name", ["base", "attn1", "mlp0", "block1", "attn0+mlp1", "attn0-1", "mlp0-1", "block0-1"])
@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_every_skip_kind_builds(name: str, mark: str, workdir: Path) -> None:
    graph = skip.cut(base(workdir), SkipSet.parse(name))
    plan = build.build(graph, targets=("sm80",), **SMALL)
    assert plan == Path("engines/tiny") / name / "tensorrt-rtx-sm80-fp16.plan" and plan.stat().st_size > 10_000
    record = store.read_sidecar(plan)
    assert record["graph"]["sha256"] == store.sha256(graph) and record["weights"] and record["build"]["num_layers"] > 0
    assert len(record["profiles"]) == (1 if len(SkipSet.parse(name).attention) == 2 else 2)
    assert "not run" in record["proven"] or tensorrt.gpu_target()
    stamp = plan.stat().st_mtime_ns
    assert build.build(graph, targets=("sm80",), **SMALL) == plan and plan.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_every_architecture_builds(model_type: str, mark: str, workdir: Path) -> None:
    assert build.build(base(workdir, model_type), targets=("sm86",), **SMALL).is_file()


@pytest.mark.parametrize("targets", [("sm75",), ("sm89",), ("sm120",), ("sm80,sm86", "sm89")])
@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_targets(targets: tuple[str, ...], mark: str, workdir: Path) -> None:
    plan = build.build(base(workdir), targets=targets, **SMALL)
    assert store.read_sidecar(plan)["targets"] == ",".join(targets).split(",")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("sm90",), "no code for sm90.*--backend tensorrt"),
        (("sm99",), "no target 'sm99'"),
        (("sm75", "sm80"), "plan of its own"),
    ],
)
@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_wrong_targets(targets: tuple[str, ...], message: str, mark: str, workdir: Path) -> None:
    with pytest.raises(UserError, match=message):
        build.build(base(workdir), targets=targets, **SMALL)
    assert not list(workdir.rglob("*.plan"))


@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_fp32_is_refused_or_decomposed(mark: str, workdir: Path) -> None:
    graph = base(workdir, precision="fp32")
    with pytest.raises(UserError, match="engines are built from fp16 graphs"):
        build.build(graph, targets=("sm80",), **SMALL)
    plan = build.build(graph, targets=("sm80",), keep_precision=True, **SMALL)
    assert plan.name == "tensorrt-rtx-sm80-fp32.plan"


@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_parser_errors_name_node_and_log(mark: str, workdir: Path) -> None:
    graph = base(workdir)
    proto = onnx.load(str(graph), load_external_data=False)
    next(n for n in proto.graph.node if n.op_type == "Sigmoid").op_type = "Unheard"
    record = store.read_sidecar(graph)
    graph.write_bytes(proto.SerializeToString())
    store.write_sidecar(graph, record)
    with pytest.raises(UserError, match=r"cannot parse .*/layers.0/mlp/Sigmoid' \(Unheard\).*log: engines/.*\.log") as caught:
        build.build(graph, targets=("sm80",), **SMALL)
    assert Path(str(caught.value).rsplit("log: ", 1)[1]).read_text() and not list(workdir.rglob("*.plan"))


@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_builder_errors_leave_no_plan(mark: str, workdir: Path) -> None:
    """A profile beyond what the graph allows: the builder's own words come back."""
    graph = base(workdir, head_dim=16, num_key_value_heads=2)
    builder = tensorrt.Builder("tensorrt-rtx")
    builder.parse(graph, decomposable=False)
    wrong = build.profiles(builder.inputs(), **SMALL, context=256)
    wrong[0]["past_key_values.0.key"] = ((1, 7, 0, 16),) * 3
    with pytest.raises(UserError, match="cannot build this network: "):
        builder.build(wrong[:1], ("sm80",), False, None)


@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_a_killed_build_leaves_no_plan(mark: str, workdir: Path) -> None:
    graph = base(workdir, num_hidden_layers=12)
    line = [sys.executable, "-m", "pipeline.cli", "build-engine", str(graph), "--target", "sm80"]
    for delay in (1.0, 2.0):
        process = subprocess.Popen(line, env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for plan in workdir.rglob("*.plan"):
            assert store.read_sidecar(plan)  # it had finished
    done = subprocess.run(line, env=tiny.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert store.read_sidecar(Path(done.stdout.strip())) and not list(workdir.rglob("*.tmp"))


@pytest.mark.skipif(tensorrt.gpu_target() is not None, reason="a GPU is here: engines run")
@pytest.mark.parametrize("mark", [pytest.param("rtx", marks=rtx)])
def test_without_a_gpu_it_says_so_in_one_line(mark: str, workdir: Path) -> None:
    graph = base(workdir)
    plan = build.build(graph, targets=("sm80",), **SMALL)
    for arguments in (["check", str(plan)], ["bench", str(plan), "--unchecked"]):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            env=tiny.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "GPU" in done.stderr, done.stderr
    with pytest.raises(UserError, match="--strip-weights needs a GPU"):
        build.build(graph, targets=("sm80",), strip_weights=True, **SMALL)


def test_a_missing_backend_says_what_adds_it(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tensorrt.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"tensorrt is not installed; run `pip install 'skip-pipeline\[tensorrt\]'`"):
        tensorrt.library("tensorrt")
    with pytest.raises(UserError, match="no backend 'onnx'"):
        tensorrt.library("onnx")


def test_profiles_by_hand() -> None:
    inputs = {
        "input_ids": (-1, -1), "attention_mask": (-1, -1), "position_ids": (-1, -1), "logits_positions": (-1, -1),
        "past_key_values.0.key": (-1, 2, -1, 16),
    }  # fmt: skip
    prefill, decode = build.profiles(inputs, (1, 1, 4), (1, 50, 2048), (0, 100, 2048), context=1024)
    assert prefill["input_ids"] == ((1, 1), (1, 50), (4, 1024)) and prefill["attention_mask"] == ((1, 1), (1, 50), (4, 2047))
    assert prefill["past_key_values.0.key"] == ((1, 2, 0, 16), (1, 2, 0, 16), (4, 2, 1023, 16))
    assert prefill["logits_positions"] == ((1, 1), (1, 1), (4, 128))
    assert decode["input_ids"] == ((1, 1), (1, 1), (4, 1)) and decode["attention_mask"] == ((1, 1), (1, 101), (4, 1024))
    feeds = {
        n: np.zeros(tuple(d if d > 0 else k for d, k in zip(s, (1, 1), strict=False)) if len(s) == 2 else (1, 2, 9, 16))
        for n, s in inputs.items()
    }
    feeds["attention_mask"] = np.zeros((1, 10))
    assert tensorrt.pick_profile([prefill, decode], feeds) == 1  # one token on a cache
    feeds |= {"input_ids": np.zeros((1, 40)), "position_ids": np.zeros((1, 40)), "attention_mask": np.zeros((1, 49))}
    assert tensorrt.pick_profile([prefill, decode], feeds) == 0
    feeds["input_ids"] = np.zeros((9, 40))
    with pytest.raises(UserError, match="was not built for shapes"):
        tensorrt.pick_profile([prefill, decode], feeds)


@pytest.mark.parametrize("backend", [pytest.param("tensorrt", marks=gpu), pytest.param("tensorrt-rtx", marks=[*gpu, *rtx])])
def test_an_engine_on_a_gpu_equals_the_graph(backend: str, workdir: Path) -> None:
    """Prefill and decode of a built engine against ONNX Runtime on the graph that it was built from."""
    pytest.importorskip(tensorrt.BACKENDS[backend] if backend == "tensorrt" else "tensorrt_rtx_bindings")
    graph = skip.cut(base(workdir), SkipSet.parse("attn1"))
    plan = build.build(graph, backend=backend, strip_weights=backend == "tensorrt", **SMALL)
    ids = np.random.default_rng(0).integers(3, 96, (2, 9))
    with backends.open_runner(graph) as cpu, backends.open_runner(plan) as engine:
        expected, cache = cpu.forward(ids[:, :8])
        logits, own = engine.forward(ids[:, :8])
        assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
        expected, _ = cpu.forward(ids[:, 8:], cache)
        logits, _ = engine.forward(ids[:, 8:], own)
        assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
