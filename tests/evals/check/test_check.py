"""The check passes what is right, and fails each planted fault: a wrong mask, a swapped weight, a cache off by one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from polygraphy.comparator import IterationResult, RunResults

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.check import agreement, check, scripted
from pipeline.evals.check.agreement import LIMITS, CompareOutputs, agree
from pipeline.graphs import export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.runtime.runner import Array, Runner
from pipeline.types import Precision, SkipSet, UserError
from tests import tiny


def graph(
    root: Path,
    variant: str = "base",
    precision: Precision = "fp32",
    model_type: str = "llama",
    **changes: Any,
) -> Path:
    found = checkpoint.resolve(str(tiny.checkpoint(root / model_type, model_type, **changes)))
    return variants.cut(export.export_base(found, precision), SkipSet.parse(variant))


def spoil(path: Path, fault: Any) -> Path:
    """Rewrites the graph with a fault in it, sidecar and all, as a wrong exporter would."""
    model, record = graphfile.load(path), store.read_sidecar(path)
    fault(model)
    graphfile.save(model, path, record)
    return path


def node(model: ir.Model, op_type: str, which: int = 0) -> ir.Node:
    return [n for n in model.graph if n.op_type == op_type][which]


def strict_mask(model: ir.Model) -> None:
    """k < q instead of k ≤ q: a token no longer sees itself."""
    node(model, "LessOrEqual").op_type = "Less"


def lax_mask(model: ir.Model) -> None:
    """Padding is forgotten: the causal term alone."""
    masked = node(model, "And")
    masked.outputs[0].replace_all_uses_with(node(model, "LessOrEqual").outputs[0])
    model.graph.remove(masked, safe=True)


def future_mask(model: ir.Model) -> None:
    """The mask's diagonal is lost: padding alone, no causality."""
    masked = node(model, "And")
    masked.outputs[0].replace_all_uses_with(masked.inputs[1])
    model.graph.remove(masked, safe=True)


def swap(name: str, other: str) -> Any:
    """One weight reads the bytes of another of the same shape."""

    def fault(model: ir.Model) -> None:
        values = model.graph.initializers
        theirs = values[other].const_value
        assert isinstance(theirs, ir.ExternalTensor)
        values[name].const_value = ir.ExternalTensor(
            theirs.location,
            theirs.offset,
            theirs.length,
            theirs.dtype,
            shape=theirs.shape,
            name=name,
            base_dir=theirs.base_dir,
        )

    return fault


class ForgetfulCache(Runner):
    """A runner that loses a token of one layer's keys: the oldest comes back in the newest's place."""

    def __init__(self, inner: Runner) -> None:
        self.inner, self.path, self.inputs, self.outputs = inner, inner.path, inner.inputs, inner.outputs

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        outputs = self.inner.infer(feeds, wanted)
        outputs["present.1.key"] = np.roll(outputs["present.1.key"], 1, axis=2)
        return outputs


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
    assert outcome.data["references"] == ["fp32", "fp16"][: 1 if precision == "fp32" else 2]
    assert set(outcome.data["feeds"]) == {
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
    for feed in outcome.data["feeds"].values():
        assert set(feed) == {"prefill/logits", "decode/logits"} | cached
    assert store.check_passed(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (strict_mask, "layer 0 attn"),
        (lax_mask, "layer 0 attn"),
        (future_mask, "layer 0 attn"),
        (swap("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"), "layer 1 mlp"),
        (
            swap("model.layers.1.self_attn.k_proj.weight", "model.layers.0.self_attn.k_proj.weight"),
            "layer 1 attn",
        ),
        (
            swap("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"),
            "layer 0 attn",
        ),
        (swap("model.embed_tokens.weight", "lm_head.weight"), "the embedding"),
        (swap("lm_head.weight", "model.embed_tokens.weight"), "the head"),
    ],
)
def test_planted_faults_are_caught_and_localized(
    fault: Any, where: str, precision: Precision, workdir: Path
) -> None:
    path = graph(workdir, "base", precision)
    outcome = check.check(spoil(path, fault))
    assert not outcome.passed and not store.check_passed(path)
    assert outcome.data["localized"].startswith(where), outcome.data["localized"]
    assert f"first divergence: {where}" in outcome.summary()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_cache_off_by_one_is_caught(
    precision: Precision, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graph(workdir, "base", precision)
    opened = opening.open_runner
    monkeypatch.setattr(opening, "open_runner", lambda path: ForgetfulCache(opened(path)))
    outcome = check.check(path)
    wrong = {failure.split(":")[0] for failure in outcome.data["failures"]}
    assert not outcome.passed and "length 50, decode/logits" in wrong and "length 50, present.1.key" in wrong
    assert "length 50, prefill/logits" not in wrong and "length 50, present.0.key" not in wrong


def test_a_cache_off_by_one_inside_the_graph_is_localized(workdir: Path) -> None:
    """The cached values of layer 1 come back shifted by one token: prefill is right, the decode steps are not."""

    def fault(model: ir.Model) -> None:
        past = next(v for v in model.graph.inputs if v.name == "past_key_values.1.value")
        concat = past.consumers()[0]
        zero, one, last, axis = (ir.node("Constant", [], {"value_ints": [n]}) for n in (0, 1, 2**40, 2))
        rest = ir.node("Slice", [past, one.outputs[0], last.outputs[0], axis.outputs[0]])
        first = ir.node("Slice", [past, zero.outputs[0], one.outputs[0], axis.outputs[0]])
        shifted = ir.node("Concat", [rest.outputs[0], first.outputs[0]], {"axis": 2})
        model.graph.insert_before(concat, [zero, one, last, axis, rest, first, shifted])
        concat.replace_input_with(0, shifted.outputs[0])

    outcome = check.check(spoil(graph(workdir), fault))
    assert not outcome.passed and outcome.data["localized"].startswith("layer 1 attn"), outcome.data[
        "localized"
    ]
    assert all("prefill" not in failure for failure in outcome.data["failures"])


def test_localize_of_a_right_graph_names_nothing(workdir: Path) -> None:
    for precision in ("fp32", "fp16"):
        outcome = check.check(graph(workdir, "attn0", precision), localize=True)
        assert outcome.passed and outcome.data["localized"].startswith("the head: no sublayer's"), (
            outcome.data["localized"]
        )


def test_a_fault_that_noise_hides_is_not_blamed_on_the_head(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the stream's own noise exceeds the fault, the first wrong cache tensor says where it is."""
    monkeypatch.setattr("pipeline.evals.check.localize._NOISE_FACTOR", 1e6)
    name = "model.layers.{}.self_attn.k_proj.weight"
    path = spoil(graph(workdir, "base", "fp16"), swap(name.format(1), name.format(0)))
    assert check.check(path).data["localized"].startswith("layer 1 attn or the sublayer before it")


def test_localize_without_any_sublayer(workdir: Path) -> None:
    path = spoil(graph(workdir, "block0-1"), swap("lm_head.weight", "model.embed_tokens.weight"))
    assert check.check(path).data["localized"].startswith("the head")


def test_what_passed_is_not_checked_again(workdir: Path) -> None:
    path = graph(workdir, "attn1")
    first = check.check(path)
    again = check.check(path)
    assert (
        first.fresh and not again.fresh and again.data == first.data and "already checked" in again.summary()
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
    saved = store.result_path("llama", path, "check.run")
    runs = RunResults.load(str(saved))
    assert [name for name, _ in runs.items()] == ["base.fp16", "torch-fp32", "torch-fp16"]
    assert len(runs["base.fp16"]) == 5 and runs["base.fp16"][3]["decode/logits"].shape == (1, 96)
    tool = [str(Path(sys.executable).parent / "polygraphy"), "inspect", "data", str(saved)]
    shown = subprocess.run(tool, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and "decode/logits" in shown.stdout, shown.stdout + shown.stderr


def test_short_contexts_shorten_the_feeds(workdir: Path) -> None:
    outcome = check.check(graph(workdir, max_position_embeddings=24))
    assert outcome.passed and set(outcome.data["feeds"]) == {
        "length 1",
        "length 16",
        "batch padded left",
        "batch padded right",
    }


def test_all_head_twin_is_checked_too(workdir: Path) -> None:
    outcome = check.check(variants.cut_all_logits(graph(workdir)))
    assert outcome.passed, outcome.summary()


def test_text_of_the_demo_model(demo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_root)
    path = variants.cut(export.export_base(checkpoint.resolve("demo")), SkipSet.parse("block5-29"))
    outcome = check.check(path, force=True)
    assert outcome.passed, outcome.summary()
    assert "pydoc_data" in outcome.data["tokens"]


@pytest.mark.slow
def test_a_graph_that_optimum_exported(workdir: Path) -> None:
    """GPT-NeoX is not authored here, and sums attention and MLP before they join the stream."""
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gpt_neox", vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(workdir / "neox")
    main_export(
        str(workdir / "neox"), workdir / "exported", task="text-generation-with-past", do_validation=False
    )
    path = variants.cut(export.export_from_onnx(workdir / "exported"), SkipSet((0,), (2,)))
    with pytest.raises(UserError, match="--reference FOLDER"):
        check.check(path)
    outcome = check.check(path, reference=workdir / "neox", localize=True)
    assert outcome.passed and outcome.data["localized"].startswith("the head: no sublayer's"), (
        outcome.summary()
    )

    def fault(model: ir.Model) -> None:
        softmax = node(model, "Softmax", 1)  # layers 1 and 2 still have their attention
        doubled = ir.node("Add", [softmax.outputs[0], softmax.outputs[0]])
        model.graph.insert_after(softmax, doubled)
        softmax.outputs[0].replace_all_uses_with(doubled.outputs[0])
        for i in (0, 1):
            doubled.replace_input_with(i, softmax.outputs[0])

    outcome = check.check(spoil(path, fault), reference=workdir / "neox")
    assert not outcome.passed and outcome.data["localized"].startswith("layer 2 attn"), outcome.data[
        "localized"
    ]


def test_a_foreign_file_is_refused(workdir: Path) -> None:
    (workdir / "x.onnx").write_text("hello")
    with pytest.raises(UserError, match="no sidecar"):
        check.check(workdir / "x.onnx")


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_feeds_pad_as_they_say() -> None:
    left, right = scripted.feeds(np.arange(1, 6 * 20 + 1).reshape(6, 20), (1, 5, 12))[-2:]
    for feed in (left, right):
        assert feed.input_ids.shape == (3, 20) and feed.attention_mask[:, 12:].all()
        assert (feed.attention_mask.sum(1) == [9, 13, 20]).all()
        for b in range(3):  # the same tokens in the same order, positions that count them
            kept = feed.attention_mask[b] == 1
            assert (feed.input_ids[b, kept] == left.input_ids[b, left.attention_mask[b] == 1]).all()
            assert (feed.position_ids[b, kept] == np.arange(kept.sum())).all()
    assert left.attention_mask[0, :11].sum() == 0 and left.attention_mask[0, 11] == 1
    assert right.attention_mask[0, 0] == 1 and right.attention_mask[0, 1:12].sum() == 0
    for feed in (left, right):
        wanted = scripted.wanted_positions(feed.attention_mask[:, :12])
        assert wanted.shape == (3, 8) and np.take_along_axis(feed.attention_mask, wanted, axis=1).all()
        assert (wanted[:, -1] == [np.flatnonzero(row[:12])[-1] for row in feed.attention_mask]).all()


LOOSE = (0.1, 0.9)  # limit of max_rel, least cosine


def test_agreement_statistics() -> None:
    reference = np.array([[3.0, 4.0, 0.0]])  # rms is 2.89
    ours = np.array([[3.0, 4.0, 0.2]])
    found = agree(ours, reference, *LOOSE, logits=True)
    assert (
        found.passed
        and found.max_abs == pytest.approx(0.2)
        and found.max_rel == pytest.approx(0.2 / np.sqrt(25 / 3))
    )
    assert found.cosine == pytest.approx(25 / (5 * np.sqrt(25.04))) and (
        found.top1,
        found.top5,
        found.flips,
    ) == (1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        ([[np.nan, 4.0, 0.0]], "NaN or infinity"),
        ([[np.inf, 4.0, 0.0]], "NaN or infinity"),
        ([[3.0, 4.0]], "shape"),
        ([[4.0, 3.0, 0.0]], "max_rel"),
    ],
)
def test_agreement_refuses(ours: list[list[float]], why: str) -> None:
    found = agree(np.array(ours), np.array([[3.0, 4.0, 0.0]]), *LOOSE, logits=True)
    assert not found.passed and why in found.why


def test_ties_may_flip_and_clear_margins_may_not() -> None:
    reference = np.array([[3.0, 3.01, 0.0]])
    assert agree(np.array([[3.01, 3.0, 0.0]]), reference, *LOOSE, logits=True).flips == 0
    clear = agree(np.array([[4.0, 3.0, 0.0]]), np.array([[3.0, 4.0, 0.0]]), 0.1, -1, logits=True)
    assert clear.flips == 1 and clear.top1 == 0.0 and clear.top5 == 1.0


def one(value: float) -> IterationResult:
    """An output of one vector, `value` away from [1, 1, …]."""
    return IterationResult({"x": np.full((1, 4), 1.0) + np.array([[value, 0, 0, 0]])})


def judge(errors: list[float], noise: list[float]) -> list[Any]:
    func = CompareOutputs(LIMITS["fp16"], [{"x": value} for value in noise])
    return [func(one(error), one(0.0))["x"] for error in errors]


def test_noise_draws_the_fp16_limit_over_all_stable_feeds() -> None:
    small, large = judge([0.031, 0.033], [1e-3, 1e-2])
    assert small.limit == large.limit == pytest.approx(3 * 1e-2 + 2e-3) and small.passed and not large.passed


def test_an_unstable_feed_is_held_to_its_own_noise_and_loosens_no_other() -> None:
    steady, wild = judge([0.04, 0.45], [1e-2, 0.86])
    assert (steady.stable, steady.passed, steady.limit) == (True, False, pytest.approx(0.032))
    assert (wild.stable, wild.passed, wild.limit) == (False, True, pytest.approx(3 * 0.86 + 2e-3))
    assert not judge([3.0], [0.86])[0].passed and not judge([float("nan")], [0.86])[0].passed


def test_overflow_of_pytorch_is_no_yardstick() -> None:
    overflowed, usual = judge([0.2, 0.04], [float("inf"), 1e-2])
    assert usual.limit == pytest.approx(0.032) and not usual.passed
    assert overflowed.stable and overflowed.limit <= LIMITS["fp16"].max_rel and not overflowed.passed
    assert judge([0.2], [float("inf")])[0].limit == LIMITS["fp16"].max_rel


def test_what_no_feed_can_judge_fails() -> None:
    wild = judge([0.4], [0.9])[0]
    assert wild.passed
    verdict = agreement.judge({"a": {"decode/logits": wild}, "b": {"decode/logits": wild}})
    assert (
        not verdict["passed"]
        and "every feed, decode/logits" in verdict["failures"][0]
        and len(verdict["unstable"]) == 2
    )
    steady = judge([0.01], [1e-2])[0]
    assert agreement.judge({"a": {"decode/logits": wild}, "b": {"decode/logits": steady}})["passed"]
