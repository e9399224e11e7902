"""What the forms of one variant share is made once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calib.compensation import trial, workbench
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.workbench import Workbench
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import BASE, SkipSet


def test_bare_losses_are_measured_once_a_text(
    checkpoint: Checkpoint, text: MomentsText, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip = SkipSet.parse("mlp2")
    bench = Workbench(checkpoint, skip, text)
    base, bare = bench.bare_loss(BASE), bench.bare_loss(skip)
    assert base == trial.Trial(bench.reference, text.held_out).loss(Overlay(BASE)) != bare
    later = Workbench(checkpoint, skip, text)
    monkeypatch.setattr(workbench, "Reference", None)  # is not opened
    assert (later.bare_loss(BASE), later.bare_loss(skip)) == (base, bare)
    other = Workbench(checkpoint, skip, MomentsText.cut(checkpoint, texts.OWN, 25, 16))
    with pytest.raises(TypeError):
        other.bare_loss(BASE)


def test_one_form_is_fitted_once(checkpoint: Checkpoint, text: MomentsText) -> None:
    bench = Workbench(checkpoint, SkipSet.parse("attn0"), text)
    assert bench.plan("bias") is bench.plan("bias") and not bench.can_fold
    assert np.isfinite(bench.planner.loss(bench.plan("bias").overlay))
    assert Workbench(checkpoint, SkipSet.parse("attn1"), text).can_fold
