"""Where a check places the planted faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from pipeline import store
from pipeline.evals.check import check, localize
from pipeline.graphs import export, variants
from pipeline.types import Precision, SkipSet, UserError
from tests.faults import future_mask, graph, lax_mask, node, spoil, strict_mask, swap


@pytest.mark.slow
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
    assert outcome.record.localized.startswith(where), outcome.record.localized
    assert f"first divergence: {where}" in outcome.summary()


def test_a_cache_off_by_one_inside_the_graph_is_localized(workdir: Path) -> None:
    """The cached values of layer 1 come back shifted by one token: only the decode steps are wrong."""

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
    assert not outcome.passed and outcome.record.localized.startswith("layer 1 attn"), (
        outcome.record.localized
    )
    assert all("prefill" not in failure for failure in outcome.record.failures)


def test_localize_of_a_right_graph_names_nothing(workdir: Path) -> None:
    for precision in ("fp32", "fp16"):
        outcome = check.check(graph(workdir, "attn0", precision), localize=True)
        assert outcome.passed and outcome.record.localized.startswith("the head: no sublayer's"), (
            outcome.record.localized
        )


def test_a_fault_that_noise_hides_is_not_blamed_on_the_head(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the stream's own noise exceeds the fault, the first wrong cache tensor says where it is."""
    monkeypatch.setattr("pipeline.evals.check.localize._NOISE_FACTOR", 1e6)
    name = "model.layers.{}.self_attn.k_proj.weight"
    path = spoil(graph(workdir, "base", "fp16"), swap(name.format(1), name.format(0)))
    assert check.check(path).record.localized.startswith("layer 1 attn or the sublayer before it")


def test_localize_without_any_sublayer(workdir: Path) -> None:
    path = spoil(graph(workdir, "block0-1"), swap("lm_head.weight", "model.embed_tokens.weight"))
    assert check.check(path).record.localized.startswith("the head")


def count_padding(model: ir.Model) -> None:
    """position_ids becomes 0 … S − 1 of every row, made in the graph."""
    given = next(v for v in model.graph.inputs if v.name == "position_ids")
    ids, mask = (next(v for v in model.graph.inputs if v.name == n) for n in ("input_ids", "attention_mask"))
    one = ir.node("Constant", [], {"value_ints": [1]})
    new = ir.node("Shape", [ids], {"start": 1})
    kept = ir.node("Shape", [mask], {"start": 1})
    first = ir.node("Sub", [kept.outputs[0], new.outputs[0]])
    axes = [ir.node("Squeeze", [value]) for value in (first.outputs[0], kept.outputs[0], one.outputs[0])]
    row = ir.node("Range", [axis.outputs[0] for axis in axes])
    shape = ir.node("Shape", [ids])
    rows = ir.node("Expand", [row.outputs[0], shape.outputs[0]])
    given.replace_all_uses_with(rows.outputs[0])
    model.graph.inputs.remove(given)
    model.graph.insert_before(model.graph[0], [one, new, kept, first, *axes, row, shape, rows])


def test_a_graph_that_counts_padding_is_named_for_it(workdir: Path) -> None:
    outcome = check.check(spoil(graph(workdir), count_padding))
    assert not outcome.passed and all("padded" in failure for failure in outcome.record.failures)
    assert outcome.record.localized.startswith("padding: the graph takes no position_ids")


@pytest.mark.optimum
@pytest.mark.slow
def test_a_graph_that_optimum_exported(workdir: Path) -> None:
    """GPT-NeoX is not authored here, and sums attention and MLP before they join the stream."""
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gpt_neox",
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(workdir / "neox")
    main_export(
        str(workdir / "neox"), workdir / "exported", task="text-generation-with-past", do_validation=False
    )
    path = variants.cut(export.export_from_onnx(workdir / "exported"), SkipSet((0,), (2,)))
    with pytest.raises(UserError, match="--reference FOLDER"):
        check.check(path)
    outcome = check.check(path, reference=workdir / "neox", localize=True)
    assert outcome.passed and outcome.record.localized.startswith("the head: no sublayer's"), (
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
    assert not outcome.passed and outcome.record.localized.startswith("layer 2 attn"), (
        outcome.record.localized
    )


def test_an_engine_cannot_be_looked_into(workdir: Path) -> None:
    assert localize.place(workdir / "x.plan", workdir, [], {}).startswith("an engine's inner values")


def test_a_divergence_in_words() -> None:
    divergence = localize.Divergence("layer 3 attn", 0.25, 1e-3, "length 50")
    assert str(divergence) == (
        "layer 3 attn: relative error 2.5e-01 of the residual stream, limit 1.0e-03 (feed: length 50)"
    )
