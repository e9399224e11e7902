"""What a check passes and refuses, and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from polygraphy.comparator import RunResults

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.check import check
from pipeline.evals.check.agreement import LIMITS
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.types import Precision, SkipSet, UserError
from tests import overlays
from tests.faults import ForgetfulCache, graph, spoil, swap


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("model_type", "variant"),
    [
        ("llama", "base"),
        ("llama", "attn0"),
        ("llama", "block1"),
        ("llama", "block0-1"),
        ("llama", "attn0-1"),
        ("phi", "mlp0"),
        ("mistral", "attn1"),
    ],
)
def test_right_graphs_pass(model_type: str, variant: str, precision: Precision, workdir: Path) -> None:
    path = graph(workdir, variant, precision, model_type)
    outcome = check.check(path)
    assert outcome.passed, outcome.summary()
    assert outcome.record.references == ("fp32", "fp16")[: 1 if precision == "fp32" else 2]
    assert set(outcome.record.feeds) == {
        "length 1",
        "length 50",
        "length 100",
        "batch padded left",
        "batch padded right",
    }
    cached = {
        f"present.{i}.{part}"
        for i in range(2)
        if i not in SkipSet.parse(variant).attention
        for part in ("key", "value")
    }
    for feed in outcome.record.feeds.values():
        assert set(feed) == {"prefill/logits", "decode/logits"} | cached
    assert store.check_passed(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_cache_off_by_one_is_caught(
    precision: Precision, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graph(workdir, "base", precision)
    opened = opening.open_runner
    monkeypatch.setattr(
        opening, "open_runner", lambda *args, **options: ForgetfulCache(opened(*args, **options))
    )
    outcome = check.check(path)
    wrong = {failure.split(":")[0] for failure in outcome.record.failures}
    assert not outcome.passed and "length 50, decode/logits" in wrong and "length 50, present.1.key" in wrong
    assert "length 50, prefill/logits" not in wrong and "length 50, present.0.key" not in wrong


def test_paths_in_the_result_are_relative_to_it(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    path = workdir / graph(workdir)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    outcome = check.check(path)
    assert outcome.result == workdir / "evals/results/llama/base.fp32.check.json"
    assert outcome.record.artefact == "../../../graphs/llama/base.fp32.onnx"
    assert store.resolved(outcome.record.checkpoint, outcome.result) == path.parent
    assert outcome.plain()["path"] == str(path) and store.check_passed(path)


def test_what_passed_is_not_checked_again(workdir: Path) -> None:
    path = graph(workdir, "attn1")
    first = check.check(path)
    again = check.check(path)
    assert (
        first.fresh
        and not again.fresh
        and again.record == first.record
        and "already checked" in again.summary()
    )
    assert check.check(path, force=True).fresh
    spoil(path, swap("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"))
    assert not store.check_passed(path)  # another file under the same name
    failed = check.check(path)
    assert failed.fresh and not failed.passed and not check.check(path).passed
    assert check.check(path).fresh  # a failure never stands in for a check


def test_result_is_strict_json_with_everything(workdir: Path) -> None:
    path = graph(workdir, "base", "fp16")
    outcome = check.check(path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    data = json.loads(outcome.result.read_text(), parse_constant=refuse)
    assert data["sha256"] == store.sha256(path) and data["passed"] is True and data["seconds"] > 0
    logits = data["feeds"]["batch padded left"]["decode/logits"]
    assert {"max_abs", "max_rel", "cosine", "top1", "top5", "flips", "limit"} <= set(logits)
    assert logits["limit"] < LIMITS["fp16"].max_rel  # the noise of PyTorch's own fp16 draws the limit
    assert data["noise"]["batch padded left"]["decode/logits"]["max_rel"] > 0
    assert "random ids (seed 0)" in data["tokens"]
    assert {"torch", "transformers", "polygraphy", "onnxruntime-gpu"} <= set(data["versions"])
    assert data["device"].endswith("cores seen)")


def test_polygraphy_opens_the_runs(workdir: Path) -> None:
    path = graph(workdir, "base", "fp16")
    check.check(path)
    saved = store.result_of(path, "check.run")
    runs = RunResults.load(str(saved))
    assert list(runs.keys()) == ["base.fp16", "torch-fp32", "torch-fp16"]
    assert len(runs["base.fp16"]) == 5 and runs["base.fp16"][3]["decode/logits"].shape == (1, 96)
    tool = [str(Path(sys.executable).parent / "polygraphy"), "inspect", "data", str(saved)]
    shown = subprocess.run(tool, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and "decode/logits" in shown.stdout, shown.stdout + shown.stderr


def test_short_contexts_shorten_the_feeds(workdir: Path) -> None:
    outcome = check.check(graph(workdir, max_position_embeddings=24))
    assert outcome.passed and set(outcome.record.feeds) == {
        "length 1",
        "length 16",
        "batch padded left",
        "batch padded right",
    }


def test_all_head_twin_is_checked_too(workdir: Path) -> None:
    outcome = check.check(variants.cut_all_logits(graph(workdir)))
    assert outcome.passed, outcome.summary()


@pytest.mark.slow
def test_text_of_the_demo_model(demo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_root)
    path = variants.cut(export.export_base(checkpoint.resolve("demo")), SkipSet.parse("block5-29"))
    outcome = check.check(path, force=True)
    assert outcome.passed, outcome.summary()
    assert "pydoc_data" in outcome.record.tokens


def test_a_foreign_file_is_refused(workdir: Path) -> None:
    (workdir / "x.onnx").write_text("hello")
    with pytest.raises(UserError, match="no sidecar"):
        check.check(workdir / "x.onnx")


@pytest.mark.parametrize(
    ("model_type", "variant", "precision"),
    [("llama", "base", "fp32"), ("mistral", "attn1", "fp32"), ("llama", "block0~linear", "fp16")],
)
def test_graphs_with_a_static_cache_pass(
    model_type: str, variant: str, precision: Precision, workdir: Path
) -> None:
    skip, _, form = variant.partition("~")
    path = graph(workdir, skip, precision, model_type)
    if form:
        chosen = SkipSet.parse(skip)
        overlay = overlays.of_form(path.parent, chosen, form)
        path = variants.compensate(variants.base_of(path), chosen, overlay, form)
    outcome = check.check(variants.cut_static(path, 128))
    assert outcome.passed, outcome.summary()
    assert outcome.result.name == f"{variant}.{precision}.static128.check.json" and not outcome.record.missed
    assert outcome.record.max_tokens == 128 and not store.check_passed(path)


def test_a_static_cache_that_is_written_elsewhere_is_caught_and_placed(workdir: Path) -> None:
    def forget(model: ir.Model) -> None:
        for scatter in [one for one in model.graph if one.op_type == "TensorScatter"][:2]:
            scatter.replace_input_with(2, None)  # the first place, whatever P is

    outcome = check.check(spoil(variants.cut_static(graph(workdir), 128), forget))
    assert not outcome.passed and "layer 0 attn" in str(outcome.record.localized)
