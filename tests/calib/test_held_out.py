"""Loss and KL of variants on held-out text, beside those of plain passes; measured once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import store
from pipeline.calib import calibrate, held_out
from pipeline.calib.compensation import compensate
from pipeline.calib.evolution.divergences import EVERY
from pipeline.calib.selectors import ModelStatistics
from pipeline.models import checkpoint, texts
from pipeline.models.reference import Reference
from pipeline.store import records
from pipeline.store.records import CompensationSettings, HeldOutRecord
from pipeline.types import BASE, SkipSet, Variant
from tests import tiny

SKIP = SkipSet((1,), (2,))
TEXT = held_out.HeldOutText(texts.OWN, 20, 2)


def plain(folder: Path, tokens: np.ndarray, *overlays: Path) -> tuple[np.ndarray, np.ndarray]:
    """(loss, KL) [N] in float64 at every fourth position, the variant loaded as `check` loads it."""
    at = np.arange(EVERY - 1, tokens.shape[1] - 1, EVERY)
    ids = torch.from_numpy(tokens)
    with torch.inference_mode():
        teacher, student = (
            torch.log_softmax(model.model(ids, use_cache=False).logits[:, at].double(), -1)
            for model in (Reference(folder), Reference(folder, SKIP, overlays=overlays))
        )
    losses = -student.gather(2, ids[:, at + 1][..., None]).mean(dim=(1, 2))
    return losses.numpy(), (teacher.exp() * (teacher - student)).sum(-1).mean(-1).numpy()


def test_bare_skip_sets_are_those_of_plain_passes(folder: Path) -> None:
    measured = held_out.HeldOut(folder, TEXT)
    answer = measured.bare([SKIP, BASE])
    losses, divergences = plain(folder, measured.tokens)
    np.testing.assert_allclose(answer[SKIP].losses, losses, atol=1e-4)
    np.testing.assert_allclose(answer[SKIP].divergences, divergences, atol=1e-4)
    np.testing.assert_allclose(answer[BASE].divergences, 0, atol=1e-6)
    rows, _ = texts.cut(folder, texts.OWN, held_out.LENGTH, 22)
    np.testing.assert_array_equal(measured.tokens, rows[20:])


@pytest.mark.parametrize("form", ["linear", "fold"])
def test_a_compensated_variant_is_measured_with_all_that_stands_in(folder: Path, form: str) -> None:
    """Folded weights leave the whole model's own numbers, and the bare variant's, as they were."""
    opened = checkpoint.open_checkpoint(folder)
    overlay = compensate.compensate(opened, SKIP, CompensationSettings(form=form, samples=10, length=32))
    measured = held_out.HeldOut(folder, TEXT)
    before = measured.bare([SKIP])[SKIP]
    answer = measured.compensated(Variant("tiny", SKIP, compensation=form), overlay)
    losses, divergences = plain(folder, measured.tokens, overlay)
    np.testing.assert_allclose(answer.losses, losses, atol=1e-4)
    np.testing.assert_allclose(answer.divergences, divergences, atol=1e-4)
    assert answer.overlay == store.sha256(overlay) and answer.losses != before.losses
    measured.path.unlink()
    again = measured.bare([SKIP, BASE])
    assert again[SKIP] == before and max(again[BASE].divergences) < 1e-6


def test_what_is_known_is_not_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = checkpoint.open_checkpoint(folder)
    settings = CompensationSettings(form="bias", samples=10, length=32)
    overlay = compensate.compensate(opened, SKIP, settings)
    variant = Variant("tiny", SKIP, compensation="bias")
    first = held_out.HeldOut(folder, TEXT)
    known = first.bare([SKIP]), first.compensated(variant, overlay)
    file = records.read(HeldOutRecord, first.path)
    assert set(file.variants) == {SKIP.name, variant.name} and file.texts.skipped == 20
    with monkeypatch.context() as patch:
        patch.setattr(held_out.HeldOut, "reference", property(lambda _: pytest.fail("measured again")))
        again = held_out.HeldOut(folder, TEXT)
        assert (again.bare([SKIP]), again.compensated(variant, overlay)) == known
    other = compensate.compensate(opened, SKIP, settings.replaced(samples=12), force=True)
    changed = held_out.HeldOut(folder, TEXT).compensated(variant, other)
    assert changed.overlay != known[1].overlay and changed.losses != known[1].losses


def test_the_text_lies_behind_all_that_was_read(folder: Path) -> None:
    own, fitted = held_out.unread(ModelStatistics(folder), 4), CompensationSettings()
    assert own.skip * held_out.LENGTH == (fitted.samples + 16 + held_out.SEARCHED) * fitted.length
    assert held_out.unread(ModelStatistics(folder, samples=100, length=300), 4).skip == 268  # 228 · 300 / 256
    assert own.behind(9) == held_out.HeldOutText(texts.OWN, own.skip + 4, 9)
    file = calibrate.calibrate(folder, texts.OWN, calibrate.CalibrationSettings(1, 8, 2))
    assert held_out.unread(ModelStatistics(folder), 4).skip == own.skip
    store.write_json(file, {**store.read_json(file), "tokens": 130 * held_out.LENGTH})
    assert held_out.unread(ModelStatistics(folder), 4).skip == 130
    other = Path("other.txt")
    other.write_text(texts.text()[100:])
    another = ModelStatistics(folder, texts.TextInput((other,)))
    assert held_out.unread(another, 4).skip == own.skip  # `calibrate` read another text


def test_a_bos_is_no_part_of_the_text_that_was_read(folder: Path) -> None:
    """Sequences of 512 tokens have 511 of the text, and two of 256 have 510."""
    tiny.tokenizer(folder, bos=True)
    file = calibrate.calibrate(folder, texts.OWN, calibrate.CalibrationSettings(1, 8, 2))
    store.write_json(file, {**store.read_json(file), "tokens": 256 * 512})
    skip = held_out.unread(ModelStatistics(folder), 4).skip
    assert skip * (held_out.LENGTH - 1) >= 256 * 511 > 2 * 256 * (held_out.LENGTH - 1)


def test_the_error_of_a_mean() -> None:
    assert held_out.mean([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, (7 / 9) ** 0.5))
    assert held_out.mean([2.0]) == (2.0, None)
