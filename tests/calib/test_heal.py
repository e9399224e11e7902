"""Healing on tiny models: what is trained, that it helps, that it goes on after a kill, and that its graphs are right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline import store
from pipeline.calib import adapters, heal, healer, losses, training
from pipeline.cli import prerequisites
from pipeline.engines import build, opening
from pipeline.engines.settings import BuildSettings
from pipeline.evals.check import check
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.models import checkpoint, texts
from pipeline.models.reference import Reference
from pipeline.store.records import AdapterRecord, HealSettings, read
from pipeline.types import SkipSet, UserError
from tests import needs, tiny

SMALL = {"steps": 12, "batch": 4, "length": 32, "rank": 8, "alpha": 8, "lr": 3e-3, "warmup": 1}


@pytest.fixture
def base(workdir: Path) -> Path:
    source = tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=4)
    tiny.tokenizer(source)
    return export.export_base(checkpoint.resolve("models/tiny"))


def variant(base: Path, name: str = "block2") -> Path:
    return variants.cut(base, SkipSet.parse(name))


def record(place: Path) -> AdapterRecord:
    return read(AdapterRecord, place / adapters.RECORD)


@pytest.mark.parametrize("loss", ["ce", "kl", "aux"])
def test_every_loss_heals_and_is_recorded(base: Path, loss: str) -> None:
    place = heal.heal(variant(base), HealSettings(loss=loss, **SMALL))
    written = record(place)
    assert written.held_out_loss.after < written.held_out_loss.before
    assert written.settings.loss == loss and len(written.train_loss) == SMALL["steps"]
    assert written.train_loss[-1] < written.train_loss[0]
    assert written.variant == "block2" and written.texts.sha256 and not (place / ".partial").exists()


def test_the_same_seed_gives_the_same_adapter_and_a_stopped_run_goes_on(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, settings = variant(base), HealSettings(**SMALL)
    monkeypatch.setattr(training, "SAVED_EVERY", 5)
    whole = load_file(heal.heal(graph, settings, name="whole") / "adapter_model.safetensors")
    real, count = healer.Healer.objective, [0]

    def dying(self, ids):
        count[0] += 1
        if count[0] == 8:
            raise KeyboardInterrupt
        return real(self, ids)

    monkeypatch.setattr(healer.Healer, "objective", dying)
    with pytest.raises(KeyboardInterrupt):
        heal.heal(graph, settings, name="stopped")
    place = adapters.folder(Path("calib/tiny"), SkipSet.parse("block2"), "stopped")
    assert not (place / adapters.RECORD).exists()
    heal.heal(graph, settings, name="stopped")
    assert count[0] == 8 + SMALL["steps"] - 5  # from step 5 on
    again = load_file(place / "adapter_model.safetensors")
    assert (
        all(torch.equal(whole[key], again[key]) for key in whole)
        and len(record(place).train_loss) == SMALL["steps"]
    )
    heal.heal(graph, settings, name="stopped")
    assert count[0] == 8 + SMALL["steps"] - 5  # it is there already
    other = load_file(
        heal.heal(graph, HealSettings(**{**SMALL, "seed": 1}), name="stopped") / "adapter_model.safetensors"
    )
    assert not all(torch.equal(whole[key], other[key]) for key in whole)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("block1-2", ("mlp",)), ("mlp1+attn2", ("attn", "mlp")), ("attn0", ("q_proj", "down_proj"))],
)
def test_adapters_never_touch_what_is_left_out(base: Path, name: str, wanted: tuple[str, ...]) -> None:
    place = heal.heal(variant(base, name), HealSettings(**{**SMALL, "steps": 1, "targets": wanted}))
    left_out = SkipSet.parse(name)
    touched = set(load_file(place / "adapter_model.safetensors"))
    kinds = {"self_attn": "attn", "mlp": "mlp"}
    sublayers = {
        (int(key.split(".layers.")[1].split(".")[0]), kinds[key.split(".layers.")[1].split(".")[1]])
        for key in touched
    }
    assert sublayers and not any(one in left_out for one in sublayers)
    assert {key.split(".")[-3] for key in touched} <= {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    if "q_proj" in wanted:
        assert {key.split(".")[-3] for key in touched} == {"q_proj", "down_proj"}


def test_peft_loads_it_and_gives_the_healed_loss(base: Path) -> None:
    graph = variant(base)
    place = heal.heal(graph, HealSettings(**SMALL))
    reference = Reference(base.parent, SkipSet.parse("block2"))
    model = PeftModel.from_pretrained(reference.model, str(place))
    held_out = texts.cut(base.parent, texts.OWN, 32, 12 * 4 + heal.HELD_OUT)[0][-heal.HELD_OUT :]
    with torch.inference_mode():
        ids = torch.from_numpy(held_out)
        found = float(losses.cross_entropy(model(input_ids=ids).logits, ids))
    assert found == pytest.approx(record(place).held_out_loss.after, abs=1e-4)
    AutoModelForCausalLM.from_pretrained(base.parent).load_adapter(str(place))  # and so does transformers


def test_equations() -> None:
    """KL and mismatch against plain numpy; the cut is after each run of layers that lack something."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 7)), rng.normal(size=(2, 3, 7))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (b, a))
    assert float(losses.divergence(torch.tensor(a), torch.tensor(b))) == pytest.approx(
        (p * np.log(p / q)).sum(-1).mean(), rel=1e-5
    )
    expected = (((a - b) ** 2).sum(-1) / (b**2).sum(-1)).mean()
    assert float(losses.mismatch(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, rel=1e-5)
    assert healer.cuts(SkipSet.parse("block2-3+attn6"), 8) == [3, 6] and healer.cuts(
        SkipSet.parse("mlp7"), 8
    ) == [7]


def test_bad_input(base: Path) -> None:
    with pytest.raises(UserError, match="leaves nothing out"):
        heal.heal(base, HealSettings(**SMALL))
    with pytest.raises(UserError, match="matches --targets nothing"):
        heal.heal(variant(base), HealSettings(**{**SMALL, "targets": ("nothing",)}))
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        heal.heal(variant(base), HealSettings(quantize="4bit"))
    with pytest.raises(UserError, match="at least 1"):
        heal.heal(variant(base), HealSettings(steps=0))
    Path("a.txt").write_text("short " * 40)
    with pytest.raises(UserError, match="healing needs more than"):
        heal.heal(variant(base), HealSettings(**SMALL), texts.TextInput((Path("a.txt"),)))
    found = checkpoint.open_checkpoint(base.parent)
    with pytest.raises(UserError, match="block1 has no adapter 'heal'; make one with"):
        adapters.read(found, SkipSet.parse("block1"), "heal")
    place = heal.heal(variant(base), HealSettings(**{**SMALL, "steps": 1}))
    with pytest.raises(UserError, match=r"one of that name is there of block2"):
        adapters.read(found, SkipSet.parse("block1"), "heal")
    shutil.copytree(place, adapters.folder(Path("calib/tiny"), SkipSet.parse("block1"), "heal"))
    with pytest.raises(UserError, match="was trained for block2"):
        adapters.read(found, SkipSet.parse("block1"), "heal")
    weights = place / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is not what"):
        adapters.merge(found, SkipSet.parse("block2"), "heal")
    assert store.sha256(weights) != record(place).sha256


# ---- the healed graph -----------------------------------------------------------------------------------------------


def healed(base: Path, name: str = "block2", **more) -> Path:
    graph = variant(base, name)
    heal.heal(graph, HealSettings(**{**SMALL, **more}))
    return prerequisites.healed(graph, "heal")


def test_a_healed_graph_passes_its_check_and_stores_only_what_was_touched(base: Path) -> None:
    path = healed(base)
    assert path.name == "block2~heal.fp32.onnx" and store.variant(path).adapter == "heal"
    assert check.check(path).passed and check.check(path, localize=True).record.localized
    held = load_file(store.healed_weights(path))
    assert set(held) == {
        f"model.layers.{k}.mlp.{m}_proj.weight" for k in (0, 1, 3) for m in ("gate", "up", "down")
    }
    found = {
        str(v.const_value.location)
        for v in graphfile.load(path).graph.initializers.values()
        if hasattr(v.const_value, "location")
    }
    assert found == {"model.safetensors", "block2~heal.safetensors"}
    with opening.open_runner(path) as mine, opening.open_runner(variant(base)) as plain:
        ids = np.arange(3, 40)[None]
        assert not np.allclose(mine.forward(ids)[0], plain.forward(ids)[0], atol=1e-3)
    assert prerequisites.healed(variant(base), "heal") == path  # made once
    assert "block2~heal.fp32.onnx" in {p.name for p in store.graphs_of("tiny")}


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
    weights = store.healed_weights(path)
    data = bytearray(weights.read_bytes())
    data[-8:] = b"\0" * 8
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"is not what block2~heal\.fp32\.onnx was made with"):
        check.check(path, force=True)


def test_twins_merges_and_refusals(base: Path) -> None:
    path, other = healed(base), healed(base, "mlp1", steps=2)
    twin = prerequisites.fp16_twin(path)
    assert twin.name == "block2~heal.fp16.onnx" and store.healed_weights(twin) == store.healed_weights(path)
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
