"""Adapters: whose they are, whether they are whole, and what a merge writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from pipeline import store
from pipeline.calib import adapters, heal
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.store.records import HealSettings
from pipeline.types import SkipSet, UserError
from tests.learning import SMALL, record, variant


def test_an_adapter_that_is_not_this_ones_is_refused(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    with pytest.raises(UserError, match="block1 has no adapter 'heal'; make one with"):
        adapters.read(opened, SkipSet.parse("block1"), "heal")
    place = heal.heal(variant(base), HealSettings(**{**SMALL, "steps": 1}))
    with pytest.raises(UserError, match=r"one of that name is there of block2"):
        adapters.read(opened, SkipSet.parse("block1"), "heal")
    shutil.copytree(place, adapters.folder(Path("calib/tiny"), SkipSet.parse("block1"), "heal"))
    with pytest.raises(UserError, match="was trained for block2"):
        adapters.read(opened, SkipSet.parse("block1"), "heal")
    weights = place / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is not what"):
        adapters.merge(opened, SkipSet.parse("block2"), "heal")
    assert store.sha256(weights) != record(place).sha256


def test_a_merge_is_the_product_and_is_made_once(base: Path) -> None:
    skip = SkipSet.parse("block2")
    place = heal.heal(variant(base), HealSettings(**{**SMALL, "steps": 1}))
    opened = checkpoint.open_checkpoint(base.parent)
    path = adapters.merge(opened, skip, "heal")
    assert path == Path("graphs/tiny/block2~heal.safetensors")
    assert adapters.is_merged(path, record(place))
    model = PeftModel.from_pretrained(Reference(base.parent, skip).model, str(place)).merge_and_unload()
    state = model.state_dict()
    for name, tensor in load_file(path).items():
        torch.testing.assert_close(tensor, state[name])
        assert not torch.equal(tensor, load_file(base.parent / "model.safetensors")[name])
    before = path.stat().st_mtime_ns
    assert adapters.merge(opened, skip, "heal") == path and path.stat().st_mtime_ns == before


def test_the_folder_of_an_adapter_stays_in_calib() -> None:
    calib = store.Project().calib("my model")
    assert adapters.folder(calib, SkipSet.parse("block2"), "a") == Path("calib/my model/block2/adapters/a")
    with pytest.raises(UserError, match="cannot be a file name"):
        adapters.folder(calib, SkipSet.parse("block2"), "../a")


def test_the_command_is_quoted(base: Path) -> None:
    opened = checkpoint.open_checkpoint(base.parent)
    with pytest.raises(UserError, match=r"heal graphs/tiny/block1\.fp32\.onnx --name 'my adapter'`"):
        adapters.read(opened, SkipSet.parse("block1"), "my adapter")
