"""Checks of graphs in which maps stand in for skipped sublayers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import store
from pipeline.evals.check import check
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.types import Precision, SkipSet
from tests import overlays, tiny
from tests.faults import spoil, swap

SKIPS = {"linear": "attn1+mlp0_2", "rank4": "attn0_2+mlp2", "run": "block1-2", "bias": "mlp1-2"}


def compensated(
    root: Path, model_type: str, form: str, precision: Precision = "fp32", skip: str | None = None
) -> Path:
    """The graph of a tiny model's compensated variant, with maps that are drawn."""
    folder = tiny.checkpoint(root / "graphs" / model_type, model_type, num_hidden_layers=4)
    base = export.export_base(checkpoint.open_checkpoint(folder), precision)
    chosen = SkipSet.parse(skip or SKIPS[form])
    overlay = overlays.of_form(folder, chosen, form, name := "linear" if form == "run" else form)
    return variants.compensate(base, chosen, overlay, name)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("form", ["linear", "run"])
def test_every_architecture_passes(model_type: str, form: str, workdir: Path) -> None:
    outcome = check.check(compensated(workdir, model_type, form), localize=True)
    assert outcome.passed, outcome.summary()
    worst = max(one.max_rel for feed in outcome.record.feeds.values() for one in feed.values())
    assert worst < 1e-4
    assert outcome.record.localized.startswith("the head: no sublayer's"), outcome.record.localized
    assert store.check_passed(store.graph_path(outcome.path.parent, store.variant(outcome.path)))


@pytest.mark.parametrize(
    ("model_type", "form", "precision"),
    [("llama", "rank4", "fp32"), ("gemma3_text", "linear", "fp16"), ("llama", "bias", "fp16")],
)
def test_forms_and_fp16_pass(model_type: str, form: str, precision: Precision, workdir: Path) -> None:
    path = compensated(workdir, model_type, form, precision)
    outcome = check.check(path)
    assert outcome.passed, outcome.summary()
    assert outcome.record.compensation == form and outcome.record.variant == store.variant(path).name
    overlay = store.overlays(path)[0]
    assert store.relative(overlay, outcome.result) in {file.file for file in outcome.record.files or ()}
    overlay.write_bytes(overlay.read_bytes()[:-1] + b"x")
    assert not store.check_passed(path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["linear", "bias", "run"])
@pytest.mark.parametrize("model_type", ["llama", "phi"])
def test_maps_for_every_sublayer_pass(model_type: str, form: str, workdir: Path) -> None:
    """No sublayer and no cache is left, and the mask has no reader."""
    outcome = check.check(compensated(workdir, model_type, form, skip="block0-3"), localize=True)
    assert outcome.passed and outcome.record.localized.startswith("the head"), outcome.summary()


@pytest.mark.parametrize(
    ("skip", "form", "wrong", "other", "where"),
    [
        ("attn1-2", "linear", "attn2.factor0", "attn1.factor0", "layer 2 attn (compensation)"),
        ("mlp1-2", "bias", "mlp1.bias", "mlp2.bias", "layer 1 mlp (compensation)"),
        ("block0-1_3", "run", "block3.bias", "block0-1.bias", "layer 3 (compensation)"),
        ("block0-1_3", "run", "block0-1.factor0", "block3.factor0", "layers 0-1 (compensation)"),
    ],
)
def test_a_wrong_map_is_caught_and_named(
    skip: str, form: str, wrong: str, other: str, where: str, workdir: Path
) -> None:
    path = compensated(workdir, "llama", form, skip=skip)
    outcome = check.check(spoil(path, swap(f"compensation.{wrong}", f"compensation.{other}")))
    assert not outcome.passed and outcome.record.localized.startswith(where), outcome.record.localized


def test_a_wrong_sublayer_behind_a_map_is_named(workdir: Path) -> None:
    path = compensated(workdir, "llama", "linear", skip="attn1+mlp0")
    name = "model.layers.{}.mlp.up_proj.weight"
    outcome = check.check(spoil(path, swap(name.format(2), name.format(3))))
    assert not outcome.passed and outcome.record.localized.startswith("layer 2 mlp: ")
