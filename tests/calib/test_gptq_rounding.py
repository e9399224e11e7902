"""Rounding with GPTQ by moments that are measured where they lack, as `export --method gptq` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from pipeline import store
from pipeline.calib import hessians
from pipeline.calib.gptq_rounding import GptqRounding
from pipeline.calib.hessian_files import HessianFiles
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.models.quantisation import blocks, descent, files
from pipeline.models.quantisation.gptq import gptq
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.reference import FAST, Reference
from pipeline.store import records
from pipeline.store.records import HessiansRecord, QuantisedRecord
from pipeline.types import UserError
from tests import learning, tiny

FORM = Quantisation(4, 32, "gptq")
SIZE = {"samples": 6, "length": 32}


def on(source: Checkpoint, text: texts.TextInput = texts.OWN, **size: int) -> Path:
    """The file, rounded on a text."""
    return files.ensure(source, FORM, GptqRounding(source, text, **size or SIZE))


@pytest.fixture
def source(folder: Path) -> Checkpoint:
    """A checkpoint with a tokenizer, whose widths blocks of 32 divide."""
    return open_checkpoint(folder)


@pytest.fixture
def english(workdir: Path) -> texts.TextInput:
    """A text of one's own."""
    (workdir / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    return texts.TextInput((Path("a.txt"),))


def test_each_weight_is_what_gptq_makes_of_it_by_moments_of_that_text(source: Checkpoint) -> None:
    path = on(source)
    tokens, _ = texts.cut(source.folder, texts.OWN, 32, 6)
    reference = Reference(source.folder, load=FAST)
    sums = {
        name: of_place.arrays()[shared]
        for _, of_place in hessians.gather(reference, tokens, lambda: None)
        for name, shared in of_place.readers.items()
    }
    weights, found = load_file(source.folder / "model.safetensors"), dict(files.dequantised(path))
    assert found.keys() == sums.keys() and len(found) == 7 * learning.LAYERS + 1
    for name, weight in found.items():
        bits = 8 if "v_proj" in name or "lm_head" in name else 4
        own = np.ascontiguousarray(weights[name].float().numpy().T)
        wanted = gptq(own, sums[name], bits, 32)
        wanted = descent.improved(own, wanted, sums[name], 4) if bits == 4 else wanted
        assert np.array_equal(weight, blocks.dequantised(wanted))


def test_the_record_says_on_what(source: Checkpoint, english: texts.TextInput) -> None:
    path = on(source, english)
    record = records.read(QuantisedRecord, store.sidecar_path(path))
    known = record.rounded_on
    assert known is not None and (record.method, known.samples, known.length) == ("gptq", 6, 32)
    assert known.texts.origin == ("../../a.txt",)
    moments = records.read(HessiansRecord, source.calib / "hessians" / "layer0.json")
    assert known.texts.ids == moments.texts.ids


def test_what_is_there_is_taken_whatever_its_text_unless_one_is_named(
    source: Checkpoint, english: texts.TextInput, workdir: Path
) -> None:
    path = on(source, english)
    inode = path.stat().st_ino
    assert files.ensure(source, FORM, GptqRounding(source)) == path
    assert on(source, english) == path and on(source, english, samples=6) == path
    for text, size, says in (
        (english, {"samples": 7}, r"rounded on a\.txt \(6 × 32 tokens\), not on what --texts"),
        (texts.OWN, {"length": 16}, "leave them out to use it as it is, or remove it"),
        (texts.TextInput(dataset="some/set"), {}, r"rounded on a\.txt"),
    ):
        with pytest.raises(UserError, match=says):
            files.ensure(source, FORM, GptqRounding(source, text, **size))
    (workdir / "a.txt").write_text("other words")
    with pytest.raises(UserError, match=r"rounded on a\.txt"):
        on(source, english)
    assert path.stat().st_ino == inode


def test_moments_are_measured_once_for_all_forms(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    on(source)
    monkeypatch.setattr(HessianFiles, "_gather", lambda *_: pytest.fail("they are there"))
    other = files.ensure(source, Quantisation(8, 32, "gptq"), GptqRounding(source, **SIZE))
    assert other.name == "quantised.int8-b32-gptq.safetensors"
    assert {one.bits for one in files.stored(other).values()} == {8}


def test_gptq_is_nearer_to_the_outputs_than_rounding(source: Checkpoint) -> None:
    """On text that it was not measured on."""
    import torch

    gptq_file, rtn_file = on(source, samples=24, length=64), files.ensure(source, Quantisation(4, 32))
    tokens = torch.from_numpy(texts.cut(source.folder, texts.OWN, 64, 4, skip=40)[0])
    positions = torch.arange(64)
    wanted, *others = (
        Reference(source.folder, overlays=overlays).logits_at(tokens, positions)
        for overlays in ((), (gptq_file,), (rtn_file,))
    )
    errors = [float((one - wanted).square().mean()) for one in others]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ({"samples": 0}, "--samples must be at least 1"),
        ({"length": 1}, "--length at least 2"),
    ],
)
def test_numbers_out_of_range(size: dict[str, int], says: str, source: Checkpoint) -> None:
    with pytest.raises(UserError, match=says):
        GptqRounding(source, **size)


def test_a_text_that_cannot_be_used(source: Checkpoint, workdir: Path) -> None:
    with pytest.raises(UserError, match=r"b\.txt does not exist"):
        GptqRounding(source, texts.TextInput((Path("b.txt"),)))
    (workdir / "b.txt").write_text("few words")
    with pytest.raises(UserError, match=r"needs more; give more --texts"):
        on(source, texts.TextInput((Path("b.txt"),)))
    assert not list(workdir.rglob("*quantised.*")) and not list(workdir.rglob("hessians"))


@pytest.mark.parametrize("model_type", sorted(tiny.DIALECTS))
def test_every_architecture(model_type: str, workdir: Path) -> None:
    """Each weight of a product has a moment under its own name."""
    folder = tiny.checkpoint(
        workdir / "graphs" / "m", model_type, vocab_size=tiny.WORDS, intermediate_size=128
    )
    tiny.tokenizer(folder)
    source = open_checkpoint(folder)
    path = on(source, samples=2, length=16)
    assert files.stored(path).keys() == files.linear_weights(source).keys()
