"""Second moments on disk: whose they are, whether they are whole, and when they are gathered again."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline import store
from pipeline.calib import hessians
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.calib.hessian_files import HessianFiles
from pipeline.models import texts
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.reference import Reference
from pipeline.store import records
from pipeline.types import UserError

DOWN, UP, HEAD = (
    "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"
)  # fmt: skip


WIDTH = 96
"""Of the inputs of DOWN."""


def unopened():
    raise AssertionError("nothing had to be gathered")


@pytest.fixture
def files(folder):
    checkpoint = open_checkpoint(folder)
    text = MomentsText.cut(checkpoint, texts.OWN, 12, 16)
    return HessianFiles(checkpoint, text, lambda: Reference(folder))


def test_what_is_gathered_is_read_and_never_gathered_twice(files):
    files.make()
    assert files.folder == Path("calib/tiny/hessians")
    reference = Reference(files.checkpoint.folder)
    wanted = dict(hessians.gather(reference, files.text.fitted, lambda: None))
    for name, place, shared in (
        (DOWN, "layer1", DOWN),
        (UP, "layer1", UP.replace("up", "gate")),
        (HEAD, "head", HEAD),
    ):
        sums = wanted[place].arrays()[shared]
        np.testing.assert_array_equal(files.of(name, len(sums)), sums)
    record = records.read(records.HessiansRecord, files.record("layer1"))
    assert record.weights == files.checkpoint.identity and record.contents == files.checkpoint.contents
    assert (record.place, record.samples, record.length) == ("layer1", 12, 16)
    assert record.texts.origin == texts.OWN_NAME
    HessianFiles(files.checkpoint, files.text, unopened).make()


def test_of_another_text_or_damaged_they_are_gathered_again_with_a_word(files, caplog):
    files.make()
    before = files.of(DOWN, WIDTH)
    other = MomentsText.cut(files.checkpoint, texts.OWN, 13, 16)
    again = HessianFiles(files.checkpoint, other, files.open_reference)
    with caplog.at_level(logging.WARNING):
        again.make()
    assert "gathered again" in caplog.text
    assert not np.array_equal(again.of(DOWN, WIDTH), before)
    files.make()
    np.testing.assert_array_equal(files.of(DOWN, WIDTH), before)
    files.file("head").write_bytes(files.file("head").read_bytes()[:-1])
    files.make()
    assert files.of(HEAD, 64).shape == (64, 64)


def test_those_of_a_gpu_lie_beside_those_of_the_cpu(files):
    other = HessianFiles(files.checkpoint, files.text, unopened, "cuda")
    assert other.file("layer0").name == "layer0.cuda.safetensors"
    assert other.record("layer0").name == "layer0.cuda.json"
    assert other.file("layer0").parent == files.folder


def test_a_weight_of_which_nothing_is_known_and_a_file_of_something_else_are_refused(files):
    files.make()
    with pytest.raises(UserError, match=r"layer1\.json has nothing of model\.layers\.1\.mlp\.odd\.weight"):
        files.of("model.layers.1.mlp.odd.weight", 64)
    tensors = load_file(files.file("layer1"))
    whole = tensors[DOWN]
    for odd in (whole[:5], whole[:5, :5], whole[0], whole.astype(np.float64), whole.astype(np.int8)):
        save_file(tensors | {DOWN: np.ascontiguousarray(odd)}, files.file("layer1"))
        with pytest.raises(UserError, match=r"holds no second moment of model\.layers\.1\.mlp\.down_proj"):
            files.of(DOWN, WIDTH)
    save_file({"other": tensors[DOWN]}, files.file("layer1"))
    with pytest.raises(UserError, match="has nothing of"):
        files.of(DOWN, WIDTH)


def test_an_interrupted_pass_leaves_whole_layers_and_is_done_again(files, monkeypatch):
    whole = hessians.gather

    def stopped(*args):
        for place, sums in whole(*args):
            if place == "layer2":
                raise KeyboardInterrupt
            yield place, sums

    with monkeypatch.context() as patch:
        patch.setattr(hessians, "gather", stopped)
        with pytest.raises(KeyboardInterrupt):
            files.make()
    assert files.record("layer1").is_file() and not files.record("layer2").is_file()
    files.make()
    assert files.of(HEAD, 64).shape == (64, 64)


def test_moments_and_hessians_of_one_text_have_one_origin(files):
    files.make()
    record = records.read(records.HessiansRecord, files.record("head"))
    assert record.is_for(files._request("head"))
    moved = dataclasses.replace(files.text, source=files.text.source.replaced(ids=store.text_digest("other")))
    assert not record.is_for(HessianFiles(files.checkpoint, moved, unopened)._request("head"))
