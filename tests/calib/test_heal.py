"""Healing tiny models: that it helps, that it resumes, and that its graphs are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline import store
from pipeline.calib import adapters, heal, losses
from pipeline.cli import prerequisites
from pipeline.engines import build, opening
from pipeline.engines.settings import BuildSettings
from pipeline.evals.check import check
from pipeline.graphs import graphfile, merge, variants
from pipeline.models import checkpoint, texts
from pipeline.models.reference import Reference
from pipeline.store.records import HealSettings
from pipeline.types import SkipSet, UserError
from tests import adapters as made
from tests import needs, overlays, tiny
from tests.learning import SMALL, healed, record, variant


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "kl", "aux"])
def test_every_loss_heals_and_is_recorded(base: Path, loss: str) -> None:
    place = heal.heal(variant(base), HealSettings(loss=loss, **SMALL))
    written = record(place)
    assert written.held_out_loss.after < written.held_out_loss.before
    assert written.settings.loss == loss and len(written.train_loss) == SMALL["steps"]
    assert written.train_loss[-1] < written.train_loss[0]
    assert written.variant == "block2" and written.texts.sha256 and not (place / ".partial").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -1.0}, "--lr above 0"),
        ({"rank": 10**20}, "--rank at most"),
        ({"steps": 10**20}, "--steps"),
        ({"seed": -1}, "--seed -1 is not between"),
        ({"seed": 2**32}, "is not between"),
    ],
)
def test_sizes_and_seeds_that_nothing_trains_with_are_refused(
    base: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        heal.heal(variant(base), HealSettings(**{**SMALL, **settings}))


def test_peft_loads_it_and_gives_the_healed_loss(base: Path) -> None:
    graph = variant(base)
    place = heal.heal(graph, HealSettings(**SMALL))
    reference = Reference(base.parent, SkipSet.parse("block2"))
    model = PeftModel.from_pretrained(reference.model, str(place))
    held_out = texts.cut(base.parent, texts.OWN, 32, 12 * 4 + heal.HELD_OUT)[0][-heal.HELD_OUT :]
    with torch.inference_mode():
        ids = torch.from_numpy(held_out)
        loss = float(losses.cross_entropy(model(input_ids=ids).logits, ids))
    assert loss == pytest.approx(record(place).held_out_loss.after, abs=1e-4)
    AutoModelForCausalLM.from_pretrained(base.parent).load_adapter(str(place))  # and so does transformers


def test_bad_input(base: Path) -> None:
    with pytest.raises(UserError, match="leaves nothing out"):
        heal.heal(base, HealSettings(**SMALL))
    with pytest.raises(UserError, match="matches --targets nothing"):
        heal.heal(variant(base), HealSettings(**{**SMALL, "targets": ("nothing",)}))
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        heal.heal(variant(base), HealSettings(quantize="4bit"))
    with pytest.raises(UserError, match="--precision is fp32 or bf16, not 'fp16'"):
        heal.heal(variant(base), HealSettings(precision="fp16"))
    with pytest.raises(UserError, match="at least 1"):
        heal.heal(variant(base), HealSettings(steps=0))
    Path("a.txt").write_text("short " * 40)
    with pytest.raises(UserError, match="healing needs more than"):
        heal.heal(variant(base), HealSettings(**SMALL), texts.TextInput((Path("a.txt"),)))


# ---- the healed graph ----


def test_a_check_proves_the_merged_tensors_from_the_adapter_itself(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.make(checkpoint.open_checkpoint(base.parent))
    path = prerequisites.healed(variant(base), "heal")
    proof = check.check(path).record.healed
    assert proof is not None and proof.tensors == 6 and proof.worst < 1e-6
    by_peft = adapters._merged_by_peft
    monkeypatch.setattr(
        adapters, "_merged_by_peft", lambda *of: {n: t * 1.01 for n, t in by_peft(*of).items()}
    )
    store.overlays(path)[-1].unlink()
    path = prerequisites.healed(variant(base), "heal")  # graph and reference agree on the wrong tensors
    with pytest.raises(UserError, match=r"block2~heal\.safetensors: model\.layers\.0.* is not what"):
        check.check(path)


@pytest.mark.slow
def test_a_healed_graph_passes_its_check_and_stores_only_what_was_touched(base: Path) -> None:
    path = healed(base)
    assert path.name == "block2~heal.fp32.onnx" and store.variant(path).adapter == "heal"
    assert check.check(path).passed and check.check(path, localize=True).record.localized
    tensors = load_file(store.overlays(path)[-1])
    assert set(tensors) == {
        f"model.layers.{k}.mlp.{m}_proj.weight" for k in (0, 1, 3) for m in ("gate", "up", "down")
    }
    locations = {
        str(v.const_value.location)
        for v in graphfile.load(path).graph.initializers.values()
        if hasattr(v.const_value, "location")
    }
    assert locations == {"model.safetensors", "block2~heal.safetensors"}
    with opening.open_runner(path) as whole, opening.open_runner(variant(base)) as plain:
        ids = np.arange(3, 40)[None]
        assert not np.allclose(whole.forward(ids)[0], plain.forward(ids)[0], atol=1e-3)
    assert prerequisites.healed(variant(base), "heal") == path  # made once
    assert "block2~heal.fp32.onnx" in {p.name for p in store.graphs_of("tiny")}


@pytest.mark.slow
def test_another_adapter_makes_another_graph_that_no_earlier_result_speaks_for(base: Path) -> None:
    path = healed(base, steps=1)
    tiny.passed(path)
    assert store.check_passed(path)
    assert healed(base, steps=2) == path and not store.check_passed(path)


@needs.rtx
def test_a_healed_graph_builds_with_tensorrt_rtx(base: Path) -> None:
    plan = build.build(prerequisites.fp16_twin(healed(base, steps=1)), BuildSettings(targets=("sm80",)))
    assert plan == Path("engines/tiny/block2~heal/tensorrt-rtx-sm80-fp16.plan")
    assert store.variant(plan).adapter == "heal"


def test_weights_that_are_not_the_adapters_are_refused(base: Path) -> None:
    path = healed(base, steps=1)
    weights = store.overlays(path)[-1]
    data = bytearray(weights.read_bytes())
    data[-8:] = b"\0" * 8
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"is not what block2~heal\.fp32\.onnx was made with"):
        check.check(path, force=True)


@pytest.mark.slow
def test_twins_merges_and_refusals(base: Path) -> None:
    path, other = healed(base), healed(base, "mlp1", steps=2)
    twin = prerequisites.fp16_twin(path)
    assert twin.name == "block2~heal.fp16.onnx" and store.overlays(twin)[-1] == store.overlays(path)[-1]
    together = merge.merge([base, variant(base), path, other])
    ids = np.arange(3, 40)[None]
    with opening.open_runner(together) as all_of_them:
        feeds = all_of_them.feeds(ids)
        logits = all_of_them.infer(feeds)
    for graph, name in (
        (base, "base"),
        (variant(base), "block2"),
        (path, "block2~heal"),
        (other, "mlp1~heal"),
    ):
        with opening.open_runner(graph) as alone:
            np.testing.assert_array_equal(logits[f"logits.{name}"], alone.infer(alone.feeds(ids))["logits"])
    with pytest.raises(UserError, match="is not a base graph"):
        variants.cut(path, SkipSet.parse("mlp1"))
    with pytest.raises(UserError, match="has an adapter already"):
        heal.heal(path, HealSettings(**SMALL))


# ---- on top of a compensation ----


def compensated(base: Path, seed: int = 0, name: str = "block2") -> Path:
    """The graph of a variant whose maps are drawn, with one weight that something was folded into."""
    skip = SkipSet.parse(name)
    overlay = overlays.make(base.parent, skip, "linear", "model.layers.1.mlp.down_proj.weight", seed)
    return variants.compensate(base, skip, overlay, "linear")


def test_a_compensated_variant_is_healed_on_top_of_its_maps(base: Path) -> None:
    graph = compensated(base)
    place = heal.heal(graph, HealSettings(**{**SMALL, "steps": 4}))
    assert place == Path("calib/tiny/block2~linear/adapters/heal")
    written = record(place)
    overlay = store.overlays(graph)[0]
    assert written.variant == "block2~linear" and written.compensation == store.sha256(overlay)
    held_out = texts.cut(base.parent, texts.OWN, 32, 4 * 4 + heal.HELD_OUT)[0][-heal.HELD_OUT :]
    skip, ids = SkipSet.parse("block2"), torch.from_numpy(held_out)

    def loss(*files: Path) -> float:
        with torch.inference_mode():
            logits = Reference(base.parent, skip, overlays=files).model(ids).logits
            return float(losses.cross_entropy(logits, ids))

    assert loss(overlay) == pytest.approx(written.held_out_loss.before, abs=1e-4)
    path = prerequisites.healed(graph, "heal")
    assert path.name == "block2~linear~heal.fp32.onnx"
    variant_of = store.variant(path)
    assert (variant_of.compensation, variant_of.adapter) == ("linear", "heal")
    assert [file.name for file in store.overlays(path)] == [
        "block2~linear.safetensors", "block2~linear~heal.safetensors",
    ]  # fmt: skip
    assert loss(*store.overlays(path)) == pytest.approx(written.held_out_loss.after, abs=1e-4)
    compared = check.check(path)
    assert compared.passed and compared.record.healed is not None
    assert heal.heal(graph, HealSettings(**{**SMALL, "steps": 4})) == place  # nothing to do
    twin = prerequisites.fp16_twin(path)
    assert twin.name == "block2~linear~heal.fp16.onnx" and store.overlays(twin) == store.overlays(path)
    with pytest.raises(UserError, match="has an adapter already"):
        heal.heal(path, HealSettings(**SMALL))


def test_what_stands_on_another_compensation_than_the_one_there_is_refused(base: Path) -> None:
    graph = compensated(base)
    heal.heal(graph, HealSettings(**{**SMALL, "steps": 1}))
    path = prerequisites.healed(graph, "heal")
    overlays.make(base.parent, SkipSet.parse("block2"), folded="model.layers.1.mlp.down_proj.weight", seed=1)
    for of in (graph, path):
        with pytest.raises(UserError, match=r"block2~linear\.safetensors is not what .* was made with"):
            check.check(of, force=True)
    with pytest.raises(UserError, match=r"is not what block2~linear\.fp32\.onnx was made with"):
        heal.heal(graph, HealSettings(**{**SMALL, "steps": 1}))
    again = compensated(base, seed=1)
    with pytest.raises(UserError, match="was trained on another compensation of block2~linear"):
        prerequisites.healed(again, "heal")


def test_an_adapter_called_as_a_compensation_is_refused_before_it_is_trained(base: Path) -> None:
    with pytest.raises(UserError, match=r"--name rank16: a compensation is called so"):
        heal.heal(variant(base), HealSettings(**SMALL), name="rank16")
    assert not list(Path("calib").glob("tiny/*/adapters/*"))
