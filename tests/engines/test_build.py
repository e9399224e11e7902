"""Engines of tiny models, built for real by TensorRT-RTX on a CPU; what only a GPU can show is marked `gpu`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import store
from pipeline.engines import build, builder, opening
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.models import checkpoint
from pipeline.runtime import tensorrt, tensorrt_library
from pipeline.runtime.runner import Cache
from pipeline.types import Precision, SkipSet, UserError
from tests import needs, tiny

HERE = tensorrt_library.gpu_target()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project root with a tiny model: base graphs in fp32 and fp16."""
    root = tmp_path_factory.mktemp("models")
    before = Path.cwd()
    os.chdir(root)
    try:
        found = checkpoint.resolve(str(tiny.checkpoint(Path("source") / "tiny", head_dim=16)))
        for precision in ("fp32", "fp16"):
            export.export_base(found, precision)
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(models: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current directory, on a machine that looks as if it had no GPU."""
    shutil.copytree(models / "graphs", workdir / "graphs")
    monkeypatch.setattr(tensorrt, "gpu_target", lambda: None)
    return workdir


def graph(name: str = "base", precision: Precision = "fp16") -> Path:
    return variants.cut(Path(f"graphs/tiny/base.{precision}.onnx"), SkipSet.parse(name))


def leftovers() -> list[str]:
    """Everything under engines/ that is no log and no lock."""
    return sorted(
        p.name for p in Path("engines").rglob("*") if p.is_file() and p.suffix != ".log" and p.name != ".lock"
    )


# ---- what is built --------------------------------------------------------------------------------------------------


@needs.rtx
@pytest.mark.parametrize(
    "name", ["base", "attn1", "mlp0", "block1", "attn0+mlp1", "attn0-1", "mlp0-1", "block0-1"]
)
def test_every_kind_of_variant_builds(project: Path, name: str) -> None:
    """With everything or every attention skipped too, where the network does not use some of its inputs."""
    source = graph(name)
    plan = build.build(source)
    assert plan == Path(f"engines/tiny/{name}/tensorrt-rtx-sm80-fp16.plan")
    record = store.read_sidecar(plan)
    assert store.variant_of(record) == store.variant_of(store.read_sidecar(source))
    assert record["graph"] == {"file": source.name, "sha256": store.sha256(source)}
    assert record["weights"] == store.read_sidecar(source)["weights"] and record["targets"] == ["sm80"]
    assert record["backend_version"] and record["proven"] == "parsed and built on a CPU; not run"
    left = 2 - len(SkipSet.parse(name).attention)
    made = record["build"]
    assert made["layers"].get("ATTENTION_INPUT", 0) == left and made["num_layers"] == sum(
        made["layers"].values()
    )
    assert len(made["activation_bytes"]) == 2 and made["weights_bytes"][0] > 0 and made["build_seconds"] > 0
    for profile in record["profiles"]:
        assert len([n for n in profile if n.startswith("past_key_values.")]) == 2 * left
        assert {"input_ids", "attention_mask", "position_ids", "logits_positions"} <= set(profile)
    assert leftovers() == [plan.with_suffix(".json").name, plan.name]
    assert "Engine generation completed" in plan.with_suffix(".log").read_text()
    assert store.model_of(plan) == "tiny" and store.checkpoint_folder(plan) == source.parent


@needs.rtx
@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_every_architecture_builds(workdir: Path, model_type: str) -> None:
    found = checkpoint.resolve(str(tiny.checkpoint(Path("source") / "other", model_type)))
    assert build.build(export.export_base(found, "fp16"), targets=("sm86",)).is_file()


@needs.rtx
def test_several_targets_in_one_plan(project: Path) -> None:
    several = build.build(graph("attn1"), targets=("sm89", "sm80,sm120"))
    assert several.name == "tensorrt-rtx-sm80+sm89+sm120-fp16.plan"
    assert store.read_sidecar(several)["targets"] == ["sm80", "sm89", "sm120"]
    for target in ("sm75", "sm86", "sm121"):
        assert build.build(graph("attn1"), targets=(target,)).is_file()


@needs.rtx
def test_all_logits_twin_has_a_plan_of_its_own(project: Path) -> None:
    twin = variants.cut_all_logits(graph())
    plans = {build.build(graph()), build.build(twin)}
    assert {p.name for p in plans} == {"tensorrt-rtx-sm80-fp16.plan", "tensorrt-rtx-sm80-fp16.all.plan"}
    assert all(store.read_sidecar(p)["bytes"] for p in plans)


@needs.rtx
def test_precision_is_the_graphs(project: Path) -> None:
    with pytest.raises(UserError, match="is fp32, and engines are built from fp16 graphs"):
        build.build(graph(precision="fp32"))
    assert not Path("engines").exists()
    plan = build.build(graph(precision="fp32"), keep_precision=True)
    assert plan.name == "tensorrt-rtx-sm80-fp32.plan" and store.read_sidecar(plan)["precision"] == "fp32"


@needs.rtx
def test_second_build_does_nothing_and_says_so(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = graph("block1")
    plan = build.build(source)
    before = plan.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert build.build(source, targets=("SM80",)) == plan
    assert plan.stat().st_mtime_ns == before and f"{plan} is there and matches" in caplog.text
    build.build(source, batch=(1, 1, 2))  # other profiles
    other = plan.stat().st_mtime_ns
    assert other > before and store.read_sidecar(plan)["profiles"][0]["input_ids"][2][0] == 2
    record = store.read_sidecar(source)
    model = graphfile.load(source)
    model.doc_string = "another graph"
    graphfile.save(model, source, {k: v for k, v in record.items() if k not in ("sha256", "bytes", "file")})
    build.build(source, batch=(1, 1, 2))
    third = plan.stat().st_mtime_ns
    assert third > other
    build.build(source, batch=(1, 1, 2), force=True)
    assert plan.stat().st_mtime_ns > third


# ---- profiles -------------------------------------------------------------------------------------------------------

INPUTS: dict[str, tuple[int, ...]] = {
    "input_ids": (-1, -1),
    "attention_mask": (-1, -1),
    "position_ids": (-1, -1),
    "logits_positions": (-1, -1),
    "past_key_values.0.key": (-1, 2, -1, 16),
}


def ranges(
    length: tensorrt_library.Range, past: tensorrt_library.Range, batch: tensorrt_library.Range = (1, 1, 8)
) -> dict[str, list[int]]:
    return build._ranges(Path("graphs/tiny"), batch, length, past)


@pytest.fixture
def context(workdir: Path) -> None:
    store.write_json(Path("graphs/tiny/config.json"), {"max_position_embeddings": 256})


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    "inputs", [INPUTS, {n: s for n, s in INPUTS.items() if "past" not in n}], ids=["cache", "no cache"]
)
def test_profiles_are_consistent(inputs: dict[str, tuple[int, ...]]) -> None:
    prefill, decode = build.profiles(inputs, ranges((1, 50, 100), (3, 60, 120)))
    for profile, lengths, pasts in ((prefill, (1, 50, 100), (0, 0, 120)), (decode, (1, 1, 1), (3, 60, 120))):
        for at in range(3):
            batch = (1, 1, 8)[at]
            assert profile["input_ids"][at] == profile["position_ids"][at] == (batch, lengths[at])
            assert profile["attention_mask"][at] == (batch, pasts[at] + lengths[at])
            assert profile["logits_positions"][at][1] <= lengths[at]
            if "past_key_values.0.key" in inputs:
                assert profile["past_key_values.0.key"][at] == (batch, 2, pasts[at], 16)
    assert prefill["logits_positions"] == ((1, 1), (1, 1), (8, 100))


@pytest.mark.usefixtures("context")
def test_ranges_are_cut_to_the_context_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert ranges((1, 100, 256), (0, 100, 255))["past"] == [0, 100, 255]
    assert not caplog.text
    with caplog.at_level(logging.INFO):
        found = ranges((1, 100, 2048), (0, 300, 2048))
    assert found == {
        "batch": [1, 1, 8],
        "length": [1, 100, 256],
        "past": [0, 255, 255],
        "wanted": [1, 1, 128],
    }
    assert "context is 256 tokens: building for --length 1,100,256 --past 0,255,255" in caplog.text


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    ("option", "values"),
    [("--batch", {"batch": (0, 1, 8)}), ("--length", {"length": (0, 1, 2)}), ("--past", {"past": (5, 3, 9)})],
)
def test_ranges_that_are_none(option: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{option} .* is not min,opt,max in ascending order"):
        ranges(**{"length": (1, 1, 2), "past": (0, 0, 2), **values})


def feeds(batch: int, new: int, past: int, wanted: int = 1) -> dict[str, Any]:
    shapes = {
        "input_ids": (batch, new),
        "attention_mask": (batch, new + past),
        "position_ids": (batch, new),
        "logits_positions": (batch, wanted),
        "past_key_values.0.key": (batch, 2, past, 16),
    }
    return {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}


@pytest.mark.usefixtures("context")
def test_the_profile_is_picked_by_the_feeds() -> None:
    made = build.profiles(INPUTS, ranges((1, 100, 200), (0, 100, 200)))
    assert tensorrt.pick_profile(made, feeds(1, 50, 0)) == 0
    assert tensorrt.pick_profile(made, feeds(8, 1, 90)) == 1
    assert tensorrt.pick_profile(made, feeds(1, 7, 90)) == 0  # a further chunk of a prompt
    no_past = {name: array for name, array in feeds(1, 1, 90).items() if "past" not in name}
    assert tensorrt.pick_profile([{n: p[n] for n in no_past} for p in made], no_past) == 1
    for wrong in (feeds(9, 50, 0), feeds(1, 201, 0), feeds(1, 1, 201), feeds(1, 200, 0, wanted=129)):
        with pytest.raises(UserError, match="was not built for") as caught:
            tensorrt.pick_profile(made, wrong)
        assert "\n" not in str(caught.value) and "past_key_values" not in str(caught.value)


# ---- what is refused, and what a failure leaves ---------------------------------------------------------------------


@needs.rtx
@pytest.mark.parametrize(
    ("here", "options", "why"),
    [
        (None, {"targets": ("sm90",)}, "no code for sm90 .* use --backend tensorrt on that GPU"),
        (None, {"targets": ("sm80", "sm100")}, "no code for sm100 .* use --backend tensorrt"),
        ("sm90", {}, "no code for sm90 .* use --backend tensorrt"),
        (None, {"targets": ("sm81",)}, "no target 'sm81'; choose from sm75, sm80"),
        (None, {"targets": ("sm75", "sm80")}, "sm75 goes into a plan of its own"),
        (None, {"strip_weights": True}, "--strip-weights needs a GPU"),
        (None, {"backend": "openvino"}, "no backend 'openvino'; choose from tensorrt-rtx, tensorrt"),
    ],
)
def test_refused_before_anything_is_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, here: str | None, options: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(tensorrt, "gpu_target", lambda: here)
    with pytest.raises(UserError, match=why) as caught:
        build.build(graph(), **options)
    assert "\n" not in str(caught.value) and not Path("engines").exists()


@needs.rtx
def test_targets_by_default(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpu_target", lambda: "sm89")
    assert build._targets(builder.Builder("tensorrt-rtx"), ()) == ["sm89"]
    proper: Any = SimpleNamespace(backend="tensorrt")
    assert build._targets(proper, ()) == build._targets(proper, ("sm89",)) == ["sm89"]
    with pytest.raises(UserError, match=r"builds for the GPU it runs on \(sm89\)"):
        build._targets(proper, ("sm80",))
    monkeypatch.setattr(tensorrt, "gpu_target", lambda: None)
    with pytest.raises(UserError, match="none is seen here; use --backend tensorrt-rtx"):
        build._targets(proper, ())


def test_a_backend_that_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", missing)
    with pytest.raises(
        UserError, match=r"tensorrt is not installed; run `pip install 'skip-pipeline\[tensorrt\]'`"
    ):
        tensorrt_library.library("tensorrt")
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    with pytest.raises(UserError, match="is installed but cannot be loaded: libnvinfer"):
        tensorrt_library.library("tensorrt-rtx")


@needs.rtx
def test_merged_graph_is_one_engine_with_one_logits_output_a_variant(project: Path) -> None:
    merged = merge.merge([graph(), graph("attn1"), graph("mlp0")])
    path = build.build(merged, targets=("sm80",))
    record = store.read_sidecar(path)
    assert record["variant"].startswith("merged-3-") and set(record["variants"]) == {"base", "attn1", "mlp0"}
    network = builder.Builder("tensorrt-rtx")
    network.parse(merged, False)
    outputs = {network.network.get_output(i).name for i in range(network.network.num_outputs)}
    assert {"logits.base", "logits.attn1", "logits.mlp0"} <= outputs
    assert path not in store.engines_of(record["model"])  # stages do not take it by default


@needs.rtx
def test_merged_engine_stores_the_weights_once(workdir: Path) -> None:
    """A model whose weights (13 MB) outweigh its kernels: three variants need little more than one."""
    source = tiny.checkpoint(
        Path("source") / "heavy", head_dim=64, hidden_size=256, intermediate_size=1024, vocab_size=8192
    )
    base = export.export_base(checkpoint.resolve(str(source)), "fp16")
    cut = [variants.cut(base, SkipSet.parse(name)) for name in ("attn1", "mlp0")]
    alone, together = (build.build(path, targets=("sm80",)) for path in (base, merge.merge([base, *cut])))
    assert together.stat().st_size < 1.5 * alone.stat().st_size


@needs.rtx
def test_together_builds_one_engine_of_all_graphs(project: Path) -> None:
    """The command cuts the fp16 twins, merges them, and builds that."""
    names = [str(graph()), str(graph("attn1"))]
    line = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "build-engine",
        *names,
        "--together",
        "--target",
        "sm80",
        "--json",
    ]
    done = subprocess.run(line, capture_output=True, text=True, env=tiny.environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert [sorted(one["variants"]) for one in json.loads(done.stdout)] == [["attn1", "base"]]


@needs.rtx
def test_lint_stands_before_the_build(project: Path) -> None:
    source = graph()
    spoil(source, "Attention", lambda node: node.attributes.add(graphfile.ir.AttrInt64("is_causal", 1)))
    with pytest.raises(
        UserError, match=r"node '/layers.0/attention/.*' \(Attention\): is_causal .*\(and 1 more\)"
    ):
        build.build(source)
    assert not Path("engines").exists()


@needs.rtx
def test_heads_without_a_kernel_are_refused_in_fp16_and_taken_apart_in_fp32(workdir: Path) -> None:
    found = checkpoint.resolve(str(tiny.checkpoint(Path("source") / "small", head_dim=8)))
    with pytest.raises(UserError, match="head dimension 8: there are attention kernels for 12 to 256"):
        build.build(export.export_base(found, "fp16"), targets=("sm80",))
    assert build.build(export.export_base(found, "fp32"), targets=("sm80",), keep_precision=True).is_file()


def spoil(path: Path, op_type: str, change: Any) -> None:
    """Changes every node of a type in a graph, sidecar kept right."""
    record = store.read_sidecar(path)
    model = graphfile.load(path)
    for node in model.graph:
        if node.op_type == op_type:
            change(node)
    graphfile.save(model, path, {k: v for k, v in record.items() if k not in ("sha256", "bytes", "file")})


@needs.rtx
def test_parser_error_is_one_line_with_the_log_at_hand(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = graph()
    spoil(source, "Sigmoid", lambda node: setattr(node, "op_type", "Bernoulli"))  # TensorRT has none
    with pytest.raises(UserError) as caught:
        build.build(source)
    message = str(caught.value)
    log = Path("engines/tiny/base/tensorrt-rtx-sm80-fp16.log")
    assert (
        "\n" not in message
        and "node '/layers.0/mlp/" in message
        and "(Bernoulli)" in message
        and str(log) in message
    )
    assert "Bernoulli" in log.read_text() and leftovers() == []
    assert capfd.readouterr() == ("", "")


@needs.rtx
def test_builder_error_is_one_line_with_the_log_at_hand(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        builder.Builder, "_decompose_attention", lambda self: None
    )  # then FP32 attention has no kernel
    with pytest.raises(UserError) as caught:
        build.build(graph(precision="fp32"), keep_precision=True)
    message = str(caught.value)
    log = Path("engines/tiny/base/tensorrt-rtx-sm80-fp32.log")
    assert "\n" not in message and "cannot build this network: ERROR" in message and str(log) in message
    assert "not supported by a dedicated kernel" in log.read_text() and leftovers() == []
    assert capfd.readouterr() == ("", "")


KILL = """
import os, signal, sys
from pathlib import Path
from pipeline.engines import build, builder

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "building":
    builder.Builder.build = die
else:
    replace = Path.replace
    Path.replace = lambda self, target: die() if target.suffix == ".plan" else replace(self, target)
build.build(Path("graphs/tiny/attn1.fp16.onnx"), targets=("sm80",))
"""


@needs.rtx
@pytest.mark.parametrize("moment", ["building", "writing"])
def test_killed_build_leaves_no_plan(project: Path, moment: str) -> None:
    source = graph("attn1")
    done = subprocess.run(
        [sys.executable, "-c", KILL, moment], env=tiny.environment(), capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(Path("engines").rglob("*.plan")) and not list(Path("engines").rglob("*.json"))
    assert (moment == "writing") == any(name.endswith(".plan") or ".plan." in name for name in leftovers())
    plan = build.build(source, targets=("sm80",))
    assert leftovers() == [plan.with_suffix(".json").name, plan.name]


@needs.rtx
def test_the_command_killed_at_any_moment(workdir: Path) -> None:
    """By the clock, wherever that hits: a plan that is there is whole, and the same command then ends well."""
    found = checkpoint.resolve(
        str(tiny.checkpoint(Path("source") / "deep", head_dim=16, num_hidden_layers=12))
    )
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "build-engine",
        str(export.export_base(found, "fp16")),
        "--target",
        "sm80",
    ]
    for delay in (1.0, 2.0):
        with subprocess.Popen(
            command, env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            process.kill()
        for plan in Path("engines").rglob("*.plan"):
            store.read_sidecar(plan)
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = Path(done.stdout.strip())
    assert store.read_sidecar(plan) and leftovers() == [plan.with_suffix(".json").name, plan.name]


@needs.rtx
def test_full_disk_leaves_no_plan(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        written(self, bytes(data)[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        build.build(graph())
    assert leftovers() == []


# ---- running --------------------------------------------------------------------------------------------------------


@needs.rtx
def test_a_plan_without_a_gpu_is_refused_in_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build.build(graph())
    with pytest.raises(UserError, match="runs on an NVIDIA GPU only, and none is seen here") as caught:
        opening.open_runner(plan)
    assert "\n" not in str(caught.value)
    if HERE is None:
        for arguments in (["check", str(plan)], ["bench", str(plan), "--unchecked"]):
            line = [sys.executable, "-m", "pipeline.cli", *arguments]
            done = subprocess.run(line, env=tiny.environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
            (error,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
            assert "runs on an NVIDIA GPU only, and none is seen here" in error
    monkeypatch.setattr(tensorrt, "gpu_target", lambda: "sm89")
    store.write_sidecar(plan, {**store.read_sidecar(plan), "backend_version": "1.0"})
    with pytest.raises(
        UserError, match=r"was built by tensorrt-rtx 1\.0, and .* is installed; build it again"
    ):
        opening.open_runner(plan)


def test_gpu_target_asks_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, status: int) -> None:
            self.status = status

        def cuInit(self, flags: int) -> int:
            return self.status

        def cuDeviceGet(self, device: Any, ordinal: int) -> int:
            return 0

        def cuDeviceGetAttribute(self, found: Any, attribute: int, device: Any) -> int:
            found._obj.value = {75: 8, 76: 9}[attribute]
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(0))
    assert tensorrt_library.gpu_target() == "sm89"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(100))  # CUDA_ERROR_NO_DEVICE
    assert tensorrt_library.gpu_target() is None


@needs.rtx
def test_polygraphy_speaks_to_the_backend_of_the_plan() -> None:
    """Also when it was imported before, as in `pipeline check`, and when plans of both backends take turns."""
    script = (
        "import json, sys\n"
        "from polygraphy.comparator import Comparator\n"
        "from polygraphy.datatype import DataType\n"
        "from pipeline.runtime import tensorrt as r, tensorrt_library\n"
        "trt = tensorrt_library.library('tensorrt-rtx')\n"
        "sys.modules['tensorrt'] = sys\n"  # stands for the other library
        "names = []\n"
        "for backend in ('tensorrt-rtx', 'tensorrt', 'tensorrt-rtx'):\n"
        "    runner = sys.modules[r._polygraphy(backend).__module__]\n"
        "    names.append([hasattr(runner.trt, 'ICudaEngine'), DataType.from_dtype(trt.float16, 'tensorrt') is DataType.FLOAT16]\n"
        "                 if backend == 'tensorrt-rtx' else [hasattr(runner.trt, 'ICudaEngine')])\n"
        "print(json.dumps(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=tiny.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[True, True], [False], [True, True]]


class FakeRefit:
    """TensorRT's refit API as far as it is used, with each way to fail."""

    __name__ = "fake"

    class ILogger:
        Severity = SimpleNamespace(VERBOSE=0)

    def __init__(self, fits: bool = True, missing: tuple[str, ...] = (), done: bool = True) -> None:
        self.fits, self.missing, self.done, self.refitted = fits, missing, done, False
        self.num_errors = 1

    def Refitter(self, engine: Any, logger: Any) -> Any:
        return self

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        return self

    def refit_from_file(self, path: str) -> bool:
        return self.fits

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "types\ndiffer")

    def get_missing_weights(self) -> list[str]:
        return list(self.missing)

    def refit_cuda_engine(self) -> bool:
        self.refitted = self.done
        return self.done


def test_refit_fails_unless_every_weight_is_back() -> None:
    good = FakeRefit()
    tensorrt.refit(good, None, Path("g.onnx"))
    assert good.refitted
    for fake, why in (
        (FakeRefit(fits=False), "do not fit the engine: types differ"),
        (FakeRefit(missing=("a", "b")), "lacks 2 of the weights that the engine needs, a among them"),
        (FakeRefit(done=False), "could not be refitted"),
    ):
        with pytest.raises(UserError, match=why):
            tensorrt.refit(fake, None, Path("g.onnx"))
        assert not fake.refitted


@pytest.mark.gpu
@pytest.mark.skipif(HERE is None, reason="no NVIDIA GPU is seen here")
@pytest.mark.parametrize("backend", tensorrt_library.BACKENDS)
@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("name", ["base", "attn1", "block0-1"])
def test_engine_gives_the_numbers_of_its_graph(
    project: Path, monkeypatch: pytest.MonkeyPatch, backend: str, strip: bool, name: str
) -> None:
    """Prefill at P = 0, batch 2 with left padding, then decode on the engine's own cache, beside ONNX Runtime."""
    if not needs.installed(tensorrt_library.BACKENDS[backend]):
        pytest.skip(f"{backend} is not installed")
    if backend == "tensorrt-rtx" and HERE not in builder.Builder(backend).targets():
        pytest.skip(f"TensorRT-RTX has no code for {HERE}")
    monkeypatch.setattr(tensorrt, "gpu_target", lambda: HERE)
    plan = build.build(graph(name), backend=backend, strip_weights=strip)
    assert store.read_sidecar(plan)["stripped"] is strip
    assert Path("engines/tiny/timing.cache").is_file() is (backend == "tensorrt")
    ids = np.random.default_rng(0).integers(3, 96, (2, 12))
    mask = np.ones((2, 12), np.int64)
    mask[0, :4] = 0
    with opening.open_runner(plan) as engine, opening.open_runner(graph(name)) as reference:
        caches: list[Cache | None] = [None, None]
        for new, seen in ((ids[:, :11], mask[:, :11]), (ids[:, 11:], mask)):
            pair = [
                run.forward(new, cache, attention_mask=seen)
                for run, cache in zip((engine, reference), caches, strict=True)
            ]
            caches = [cache for _, cache in pair]
            ours, theirs = (logits.astype(np.float32) for logits, _ in pair)
            assert np.abs(ours - theirs).max() <= 0.02 * np.abs(theirs).max()
