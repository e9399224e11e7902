"""Engines of tiny models, built by TensorRT-RTX on a CPU; what only a GPU can show is marked `gpu`."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pipeline import store
from pipeline.engines import build, opening
from pipeline.engines.builder import Builder
from pipeline.engines.settings import BuildSettings
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.models import checkpoint
from pipeline.runtime import tensorrt_library
from pipeline.runtime.cache import Cache
from pipeline.store.records import FileDigest
from pipeline.types import SkipSet, UserError
from tests import needs, overlays, tiny
from tests.tiny_engines import HERE, graph, leftovers, spoil


@needs.rtx
@pytest.mark.parametrize(
    "name", ["base", "attn1", "mlp0", "block1", "attn0+mlp1", "attn0-1", "mlp0-1", "block0-1"]
)
def test_every_kind_of_variant_builds(project: Path, name: str) -> None:
    """With everything or every attention skipped too, where the network does not use some of its inputs."""
    source = graph(name)
    plan = build.build(source)
    assert plan == Path(f"engines/tiny/{name}/tensorrt-rtx-sm80-fp16.plan")
    record = store.engine_sidecar(plan)
    assert record.as_variant() == store.variant(source)
    assert record.graph == FileDigest(file=source.name, sha256=store.sha256(source))
    assert record.weights == store.graph_sidecar(source).weights and record.targets == ("sm80",)
    assert record.backend_version and record.proven == "parsed and built on a CPU; not run"
    left = 2 - len(SkipSet.parse(name).attention)
    figures = record.build
    assert figures and figures.num_layers == sum(figures.layers.values())
    assert figures.layers.get("ATTENTION_INPUT", 0) == left
    assert len(figures.activation_bytes) == 2 and figures.weights_bytes[0] > 0 and figures.build_seconds > 0
    for profile in record.profiles:
        assert len([n for n in profile if n.startswith("past_key_values.")]) == 2 * left
        assert {"input_ids", "attention_mask", "position_ids", "logits_positions"} <= set(profile)
    assert leftovers() == [plan.with_suffix(".json").name, plan.name]
    assert "Engine generation completed" in plan.with_suffix(".log").read_text()
    assert store.model_of(plan) == "tiny" and store.checkpoint_folder(plan) == source.parent


@needs.rtx
def test_an_engine_is_the_same_from_any_directory_and_in_a_project_that_moved(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sidecar names the checkpoint relative to itself; a plan that is there is not built again."""
    plan = build.build(graph())
    stamp = (project / plan).stat().st_mtime_ns
    moved = project / "moved é"
    for folder in ("graphs", "engines"):
        shutil.move(project / folder, moved / folder)
    monkeypatch.chdir(Path("/"))
    again = build.build(moved / "graphs/tiny/base.fp16.onnx", BuildSettings(targets=("sm80",)))
    assert again.samefile(moved / plan) and again.stat().st_mtime_ns == stamp
    assert store.engine_sidecar(again).folder == "../../../graphs/tiny"
    assert store.checkpoint_folder(again).samefile(moved / "graphs/tiny")


@needs.rtx
@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_every_architecture_builds(workdir: Path, model_type: str) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(Path("source") / "other", model_type)))
    assert build.build(export.export_base(base_model, "fp16"), BuildSettings(targets=("sm86",))).is_file()


@needs.rtx
def test_several_targets_in_one_plan(project: Path) -> None:
    several = build.build(graph("attn1"), BuildSettings(targets=("sm89", "sm80,sm120")))
    assert several.name == "tensorrt-rtx-sm80+sm89+sm120-fp16.plan"
    assert store.engine_sidecar(several).targets == ("sm80", "sm89", "sm120")
    for target in ("sm75", "sm86", "sm121"):
        assert build.build(graph("attn1"), BuildSettings(targets=(target,))).is_file()


@needs.rtx
def test_all_logits_twin_has_a_plan_of_its_own(project: Path) -> None:
    twin = variants.cut_all_logits(graph())
    plans = {build.build(graph()), build.build(twin)}
    assert {p.name for p in plans} == {"tensorrt-rtx-sm80-fp16.plan", "tensorrt-rtx-sm80-fp16.all.plan"}
    assert all(store.engine_sidecar(p).bytes for p in plans)


@needs.rtx
def test_precision_is_the_graphs(project: Path) -> None:
    with pytest.raises(UserError, match="is fp32, and engines are built from fp16 graphs"):
        build.build(graph(precision="fp32"))
    assert not Path("engines").exists()
    plan = build.build(graph(precision="fp32"), BuildSettings(keep_precision=True))
    assert plan.name == "tensorrt-rtx-sm80-fp32.plan" and store.engine_sidecar(plan).precision == "fp32"


@needs.rtx
def test_second_build_does_nothing_and_says_so(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = graph("block1")
    plan = build.build(source)
    before = plan.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert build.build(source, BuildSettings(targets=("SM80",))) == plan
    assert plan.stat().st_mtime_ns == before and f"{plan} is there and matches" in caplog.text
    build.build(source, BuildSettings(batch=(1, 1, 2)))  # other profiles
    other = plan.stat().st_mtime_ns
    assert other > before and store.engine_sidecar(plan).profiles[0]["input_ids"][2][0] == 2
    record = store.graph_sidecar(source)
    model = graphfile.load(source)
    model.doc_string = "another graph"
    graphfile.save(model, source, record.plain())
    build.build(source, BuildSettings(batch=(1, 1, 2)))
    third = plan.stat().st_mtime_ns
    assert third > other
    build.build(source, BuildSettings(batch=(1, 1, 2), force=True))
    assert plan.stat().st_mtime_ns > third


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
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: here)
    with pytest.raises(UserError, match=why) as caught:
        build.build(graph(), BuildSettings(**options))
    assert "\n" not in str(caught.value) and not Path("engines").exists()


@needs.rtx
def test_merged_graph_is_one_engine_with_one_logits_output_a_variant(project: Path) -> None:
    merged = merge.merge([graph(), graph("attn1"), graph("mlp0")])
    path = build.build(merged, BuildSettings(targets=("sm80",)))
    record = store.engine_sidecar(path)
    assert record.variant.startswith("merged-3-") and set(record.variants or {}) == {"base", "attn1", "mlp0"}
    assert record.as_variant() is None
    network = Builder("tensorrt-rtx")
    network.parse(merged, False)
    outputs = {network.network.get_output(i).name for i in range(network.network.num_outputs)}
    assert {"logits.base", "logits.attn1", "logits.mlp0"} <= outputs
    assert path not in store.engines_of(record.model)  # stages do not take it by default


@needs.rtx
def test_merged_engine_stores_the_weights_once(workdir: Path) -> None:
    """A model whose weights (13 MB) outweigh its kernels: three variants need little more than one."""
    source = tiny.checkpoint(
        Path("source") / "heavy", head_dim=64, hidden_size=256, intermediate_size=1024, vocab_size=8192
    )
    base = export.export_base(checkpoint.resolve(str(source)), "fp16")
    cut = [variants.cut(base, SkipSet.parse(name)) for name in ("attn1", "mlp0")]
    alone, together = (
        build.build(path, BuildSettings(targets=("sm80",))) for path in (base, merge.merge([base, *cut]))
    )
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
    spoil(source, "Attention", lambda node: node.attributes.add(ir.AttrInt64("is_causal", 1)))
    with pytest.raises(
        UserError, match=r"node '/layers.0/attention/.*' \(Attention\): is_causal .*\(and 1 more\)"
    ):
        build.build(source)
    assert not Path("engines").exists()


@needs.rtx
def test_heads_without_a_kernel_are_refused_in_fp16_and_taken_apart_in_fp32(workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(Path("source") / "small", head_dim=8)))
    with pytest.raises(UserError, match="head dimension 8: there are attention kernels for 12 to 256"):
        build.build(export.export_base(base_model, "fp16"), BuildSettings(targets=("sm80",)))
    assert build.build(
        export.export_base(base_model, "fp32"), BuildSettings(targets=("sm80",), keep_precision=True)
    ).is_file()


KILL = """
import os, signal, sys
from pathlib import Path
from pipeline.engines import build, builder
from pipeline.engines.settings import BuildSettings

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "building":
    builder.Builder.build = die
else:
    replace = Path.replace
    Path.replace = lambda self, target: die() if target.suffix == ".plan" else replace(self, target)
build.build(Path("graphs/tiny/attn1.fp16.onnx"), BuildSettings(targets=("sm80",)))
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
    assert [name for name in leftovers() if ".plan." in name] == leftovers() != []  # swept by the next build
    plan = build.build(source, BuildSettings(targets=("sm80",)))
    assert leftovers() == [plan.with_suffix(".json").name, plan.name]


@needs.rtx
def test_the_command_killed_at_any_moment(workdir: Path) -> None:
    """By the clock, wherever that hits: a plan that is there is whole, and the same command ends well."""
    base_model = checkpoint.resolve(
        str(tiny.checkpoint(Path("source") / "deep", head_dim=16, num_hidden_layers=12))
    )
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "build-engine",
        str(export.export_base(base_model, "fp16")),
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
            store.engine_sidecar(plan)
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = Path(done.stdout.strip())
    assert store.engine_sidecar(plan) and leftovers() == [plan.with_suffix(".json").name, plan.name]


@needs.rtx
def test_full_disk_leaves_no_plan(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is where no byte can be written; TensorRT-RTX is told so in the middle of its stream."""
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        is_plan = ".plan" in self.name and mode == "wb"
        return opened(Path("/dev/full") if is_plan else self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space"):
        build.build(graph())
    assert leftovers() == []


@needs.rtx
def test_weights_that_change_under_the_build_leave_no_plan(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_it = Builder.build

    def change(self: Builder, *args: Any) -> None:
        build_it(self, *args)
        weights = Path("graphs/tiny/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")

    monkeypatch.setattr(Builder, "build", change)
    with pytest.raises(UserError, match=r"was written to while .* was built"):
        build.build(graph())
    assert leftovers() == []


@needs.rtx
def test_an_engine_of_bf16_weights_stores_them_once_in_fp16(workdir: Path) -> None:
    """Cast and stacked before TensorRT-RTX reads them; so it is with weights that are fp16 already."""
    sizes, layers = [], []
    for dtype in ("bf16", "fp16"):
        source = tiny.checkpoint(Path("source") / dtype, dtype=dtype, head_dim=16)
        plan = build.build(export.export_base(checkpoint.resolve(str(source)), "fp16"))
        figures = store.engine_sidecar(plan).build
        assert figures is not None
        sizes.append(figures.weights_bytes)
        layers.append(figures.layers)
    assert sizes[0] == sizes[1] and layers[0] == layers[1]
    assert layers[0]["MATRIX_MULTIPLY"] == 2 * 4 + 1  # q+k+v, o, gate+up, down; the head


@pytest.mark.gpu
@pytest.mark.skipif(HERE is None, reason="no NVIDIA GPU is seen here")
@pytest.mark.parametrize("backend", tensorrt_library.BACKENDS)
@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("name", ["base", "attn1", "block0-1"])
def test_engine_gives_the_numbers_of_its_graph(
    project: Path, monkeypatch: pytest.MonkeyPatch, backend: str, strip: bool, name: str
) -> None:
    """Prefill at P = 0, batch 2 with left padding, then decode on the engine's own cache."""
    if not needs.installed(tensorrt_library.BACKENDS[backend]):
        pytest.skip(f"{backend} is not installed")
    if backend == "tensorrt-rtx" and HERE not in Builder(backend).targets():
        pytest.skip(f"TensorRT-RTX has no code for {HERE}")
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: HERE)
    plan = build.build(graph(name), BuildSettings(backend=backend, strip_weights=strip))
    assert store.engine_sidecar(plan).stripped is strip
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
            logits, expected = (array.astype(np.float32) for array, _ in pair)
            assert np.abs(logits - expected).max() <= 0.02 * np.abs(expected).max()


@needs.rtx
@pytest.mark.parametrize("name", ["base", "attn1", "mlp0", "block0", "block1~linear"])
def test_a_static_cache_builds_for_every_kind_of_variant(project: Path, name: str) -> None:
    """Prompts of up to 256 tokens at once, and one token, of up to eight rows: two profiles of one graph."""
    skip, _, form = name.partition("~")
    source = graph(skip)
    if form:
        chosen = SkipSet.parse(skip)
        overlay = overlays.of_form(source.parent, chosen, form)
        source = variants.compensate(graph(), chosen, overlay, form)
    static = variants.cut_static(source, 256)
    plan = build.build(static)
    assert plan == Path(f"engines/tiny/{name}/tensorrt-rtx-sm80-fp16.static256.plan")
    record = store.engine_sidecar(plan)
    assert record.as_variant() == store.variant(static) != store.variant(source)
    assert record.max_tokens == 256 and record.build
    left = 2 - len(SkipSet.parse(skip).attention)
    assert record.build.layers["KV_CACHE_UPDATE"] == 2 * left
    assert record.build.layers["ATTENTION_INPUT"] == left
    prefill, decode = record.profiles
    assert prefill["input_ids"] == ((1, 1), (1, 100), (8, 256)) and decode["input_ids"][2] == (8, 1)
    caches = [sizes for key, sizes in prefill.items() if key.startswith("past_key_values.")]
    assert caches == [((1, 2, 256, 16), (1, 2, 256, 16), (8, 2, 256, 16))] * (2 * left)


@needs.rtx
def test_a_static_cache_builds_in_fp32(project: Path) -> None:
    plan = build.build(variants.cut_static(graph("attn1", "fp32"), 128), BuildSettings(keep_precision=True))
    assert plan.name == "tensorrt-rtx-sm80-fp32.static128.plan"
