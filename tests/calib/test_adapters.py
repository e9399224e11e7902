"""Adapters: whose they are, whether they are whole, and what a merge writes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.calib import adapter_files, adapters, heal
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.store.records import HealSettings
from pipeline.types import SkipSet, UserError, Variant
from tests import adapters as made
from tests import overlays, tiny
from tests.learning import SMALL, record, variant

BLOCK1 = Variant("tiny", SkipSet.parse("block1"))


def test_an_adapter_that_is_not_this_ones_is_refused(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    with pytest.raises(UserError, match="block1 has no adapter 'heal'; make one with"):
        adapters.read(opened, BLOCK1, "heal")
    place = heal.heal(variant(base), HealSettings(**{**SMALL, "steps": 1}))
    with pytest.raises(UserError, match=r"one of that name is there of block2"):
        adapters.read(opened, BLOCK1, "heal")
    shutil.copytree(place, adapters.folder(Path("calib/tiny"), BLOCK1, "heal"))
    with pytest.raises(UserError, match="was trained for block2"):
        adapters.read(opened, BLOCK1, "heal")
    weights = place / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is not what"):
        adapters.merge(opened, made.VARIANT, "heal")
    assert store.sha256(weights) != record(place).sha256


def test_a_merge_is_the_product_and_is_made_once(base: Path) -> None:
    skip = made.SKIP
    place = heal.heal(variant(base), HealSettings(**{**SMALL, "steps": 1}))
    opened = checkpoint.open_checkpoint(base.parent)
    path = adapters.merge(opened, made.VARIANT, "heal")
    assert path == Path("graphs/tiny/block2~heal.safetensors")
    assert adapters.is_merged(path, record(place))
    model = PeftModel.from_pretrained(Reference(base.parent, skip).model, str(place)).merge_and_unload()
    state = model.state_dict()
    for name, tensor in load_file(path).items():
        torch.testing.assert_close(tensor, state[name])
        assert not torch.equal(tensor, load_file(base.parent / "model.safetensors")[name])
    before = path.stat().st_mtime_ns
    assert adapters.merge(opened, made.VARIANT, "heal") == path and path.stat().st_mtime_ns == before


def test_a_tensor_of_a_base_model_is_read_under_the_files_own_name(tmp_path: Path) -> None:
    """LlamaModel's files have no prefix `model.`."""
    whole = Reference(tiny.checkpoint(tmp_path / "whole")).model
    whole.model.save_pretrained(tmp_path / "bare")
    opened = checkpoint.open_checkpoint(tmp_path / "bare")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(adapters.original(opened, name), whole.state_dict()[name])


def test_the_folder_of_an_adapter_stays_in_calib() -> None:
    calib = store.Project().calib("my model")
    assert adapters.folder(calib, made.VARIANT, "a") == Path("calib/my model/block2/adapters/a")
    with pytest.raises(UserError, match="cannot be a file name"):
        adapters.folder(calib, made.VARIANT, "../a")


def test_the_command_is_quoted(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    with pytest.raises(
        UserError, match=r"`pipeline export graphs/tiny --skip block1`, .* --name 'my adapter'`"
    ):
        adapters.read(opened, BLOCK1, "my adapter")
    export.export(opened, "fp32", SkipSet.parse("block1"))
    with pytest.raises(UserError, match=r"heal graphs/tiny/block1\.fp32\.onnx --name 'my adapter'`"):
        adapters.read(opened, BLOCK1, "my adapter")


def test_an_adapter_that_heal_did_not_train_proves_nothing(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    place = made.make(opened)
    (place / adapters.RECORD).unlink()
    with pytest.raises(UserError, match=r"`heal` did not train it, and nothing in it proves which weights"):
        adapters.merge(opened, made.VARIANT, "heal")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_merge_is_pefts_in_fp32_rounded_once(dtype: str, workdir: Path) -> None:
    tiny.checkpoint(workdir / "models" / "t", vocab_size=tiny.WORDS, num_hidden_layers=4)
    weights = workdir / "models" / "t" / "model.safetensors"
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    save_file({name: t.to(kind) for name, t in load_file(weights).items()}, weights, {"format": "pt"})
    opened = checkpoint.resolve("models/t")
    place = made.make(opened, use_rslora=True, rank_pattern={"q_proj": 2})
    merged = load_file(path := adapters.merge(opened, made.VARIANT, "heal"))
    expected = made.by_peft(opened, place)
    for name, tensor in merged.items():
        assert tensor.dtype == kind and torch.equal(tensor, expected[name].to(kind)), name
    proof = adapters.prove(opened, made.VARIANT, "heal", path)
    assert proof is not None and proof.tensors == len(merged) == 6
    assert proof.worst < 20 * torch.finfo(kind).eps


def test_other_tensors_than_the_adapters_are_no_proof(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    place = made.make(opened)
    path = adapters.merge(opened, made.VARIANT, "heal")
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1e-3}, path)
    with pytest.raises(UserError, match=f"{name} is not what .* makes of it"):
        adapters.prove(opened, made.VARIANT, "heal", path)
    save_file({other: t for other, t in tensors.items() if other != name}, path)
    with pytest.raises(UserError, match="does not hold the weights that"):
        adapters.prove(opened, made.VARIANT, "heal", path)
    shutil.rmtree(place)
    assert adapters.prove(opened, made.VARIANT, "heal", path) is None


def test_an_adapter_that_fits_in_part_is_refused_before_anything_is_written(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    place = made.make(opened)
    made.rewrite(opened, place, {n: t for n, t in made.tensors(place).items() if "layers.0" not in n})
    with pytest.raises(UserError, match=r"do not name the same modules of block2 \(model\.layers\.0\.mlp"):
        adapters.merge(opened, made.VARIANT, "heal")
    assert not list(base.parent.glob("block2~heal*"))


def test_an_adapter_that_rounding_takes_away_is_refused(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    place = made.make(opened)
    made.rewrite(opened, place, {n: t * 1e-9 for n, t in made.tensors(place).items()})
    with pytest.raises(UserError, match="changes nothing: what it adds is lost"):
        adapters.merge(opened, made.VARIANT, "heal")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_altered_adapter_is_refused_and_trained_again(name: str, base: Path) -> None:
    """`export` took another lora_alpha for the old one, and `heal`, which it named, found nothing to do."""
    settings = HealSettings(**{**SMALL, "steps": 1})
    opened = checkpoint.open_checkpoint(base.parent)
    file = heal.heal(variant(base), settings) / name
    merged = adapters.merge(opened, made.VARIANT, "heal")
    before, tensors = file.read_bytes(), load_file(merged)
    changed = before.replace(b'"lora_alpha": ', b'"lora_alpha": 1') if name.endswith("json") else before[:-9]
    assert changed != before
    file.write_bytes(changed)
    with pytest.raises(
        UserError, match=rf"{name} is not what heal\.json beside it describes; train it again"
    ):
        adapters.merge(opened, made.VARIANT, "heal")
    heal.heal(variant(base), settings)
    again = load_file(adapters.merge(opened, made.VARIANT, "heal"))
    assert all(tensor.equal(tensors[key]) for key, tensor in again.items())


# ---- of a compensated variant ----


def test_a_merge_is_on_top_of_what_a_compensation_folded(base: Path) -> None:
    opened, folded = checkpoint.open_checkpoint(base.parent), "model.layers.1.mlp.down_proj.weight"
    overlay = overlays.make(base.parent, made.SKIP, folded=folded)
    variant = replace(made.VARIANT, compensation="linear")
    place = made.make(opened, variant)
    assert place == Path("calib/tiny/block2~linear/adapters/heal")
    path = adapters.merge(opened, variant, "heal")
    assert path == Path("graphs/tiny/block2~linear~heal.safetensors")
    layers = {layer.weight: layer for layer in adapter_files.read(place, opened)}
    assert folded in layers and set(load_file(path)) == set(layers)
    whole, changed = load_file(base.parent / "model.safetensors"), load_file(overlay)
    for name, tensor in load_file(path).items():
        product = layers[name].scale * (layers[name].up.double() @ layers[name].down.double())
        expected = changed.get(name, whole[name]).double() + product
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    proof = adapters.prove(opened, variant, "heal", path)
    assert proof is not None and proof.tensors == len(layers)
    tensors = load_file(path)
    wrong = tensors[folded] - changed[folded] + whole[folded]  # W + BA, and not what was folded
    save_file({**tensors, folded: wrong}, path)
    with pytest.raises(UserError, match=f"{folded} is not what .* makes of it"):
        adapters.prove(opened, variant, "heal", path)


def test_an_adapter_of_another_compensation_is_refused(base: Path) -> None:
    opened, variant = checkpoint.open_checkpoint(base.parent), replace(made.VARIANT, compensation="linear")
    overlay = overlays.make(base.parent, made.SKIP)
    made.make(opened, variant)
    adapters.read(opened, variant, "heal")
    with pytest.raises(
        UserError, match=r"block2 has no adapter 'heal' \(one of that name is there of block2~l"
    ):
        adapters.read(opened, made.VARIANT, "heal")
    overlays.make(base.parent, made.SKIP, seed=1)
    with pytest.raises(UserError, match=r"was trained on another compensation of block2~linear; train one w"):
        adapters.merge(opened, variant, "heal")
    overlay.unlink()
    with pytest.raises(
        UserError, match=r"linear\.safetensors is missing; run `pipeline compensate .* --with lin"
    ):
        adapters.merge(opened, variant, "heal")


@pytest.mark.parametrize("name", ["linear", "rank16", "fold+rank64", "bias~a"])
def test_an_adapter_is_not_called_as_a_compensation(name: str) -> None:
    with pytest.raises(UserError, match="a compensation is called so"):
        adapters.folder(Path("calib/tiny"), made.VARIANT, name)
