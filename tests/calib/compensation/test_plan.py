"""What stands where: places, runs of whole layers, refits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.calib.compensation import gathering, plan, trial
from pipeline.calib.compensation.forms import Form
from pipeline.calib.compensation.gathering import Activations, held_back
from pipeline.calib.compensation.moment_files import MomentFiles, MomentsText
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.plan import Planner, run_places, single_places
from pipeline.calib.compensation.projections import Projections
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import SkipSet, UserError

RUN = SkipSet((1, 2), (1, 2, 3))


def planner(checkpoint: Checkpoint, reference: Reference, text: MomentsText, skip: SkipSet) -> Planner:
    files = MomentFiles(checkpoint, text, lambda: reference)
    files.make([*single_places(skip), *run_places(skip)])
    return Planner(reference, skip, Projections(checkpoint, reference), files.read, text.held_back)


def test_places() -> None:
    skip = SkipSet((0, 2, 3, 5, 7), (2, 3, 4, 7))
    names = [place.name for place in single_places(skip)]
    assert names == ["attn0", "attn2", "mlp2", "attn3", "mlp3", "mlp4", "attn5", "attn7", "mlp7"]
    assert [place.name for place in run_places(skip)] == ["block2-3", "block7"]
    assert run_places(SkipSet((1,), (2,))) == []


def test_a_run_has_one_map_where_that_is_better_and_the_record_says_so(
    checkpoint: Checkpoint, reference: Reference, text: MomentsText, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = planner(checkpoint, reference, text, RUN)
    made = bench.plan(Form.parse("linear", 64))
    ((name, separate, together),) = made.runs
    assert name == "block1-2"
    kept = {place.name for place in made.fits}
    assert kept == (
        {"block1-2", "mlp3"} if together < separate else {"attn1", "mlp1", "attn2", "mlp2", "mlp3"}
    )
    assert bench.loss(made.overlay) == min(separate, together)
    losses = iter([3.0, 2.0, 2.0, 3.0])
    monkeypatch.setattr(trial.Trial, "loss", lambda *_: next(losses))
    assert {place.name for place in bench.plan(Form.parse("rank4", 64)).fits} == {"block1-2", "mlp3"}
    assert len(bench.plan(Form.parse("rank4", 64)).fits) == 5
    assert bench.plan(Form.parse("bias", 64)).runs == ()


@pytest.mark.parametrize("form", ["linear", "fold", "bias"])
def test_refits_are_kept_where_they_help(
    checkpoint: Checkpoint, reference: Reference, text: MomentsText, form: str
) -> None:
    bench, wanted = planner(checkpoint, reference, text, SkipSet.parse("mlp1-3")), Form.parse(form, 64)
    made = bench.plan(wanted)
    refitted = bench.refitted(made, wanted, text.fitted)
    assert refitted.refit_losses is not None
    before, after = refitted.refit_losses
    assert before == bench.loss(made.overlay) and bench.loss(refitted.overlay) == min(before, after)
    by_name = {place.name: one.refitted for place, one in refitted.fits.items()}
    assert by_name == {"mlp1": False, "mlp2": after < before, "mlp3": after < before}


def test_a_refitted_map_goes_from_the_variants_stream_to_the_whole_models(
    checkpoint: Checkpoint, reference: Reference, text: MomentsText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By passes and a regression of the test's own, on the variant without the first MLP alone."""
    skip, form = SkipSet.parse("mlp1_3"), Form.parse("bias", 64)
    bench = planner(checkpoint, reference, text, skip)
    made = bench.plan(form)
    monkeypatch.setattr(plan, "GAP_SHARE", 1.0)
    losses = iter([2.0, 1.0])
    monkeypatch.setattr(trial.Trial, "loss", lambda *_: next(losses))
    refitted = bench.refitted(made, form, text.fitted)
    (place, fitted) = max(refitted.fits.items())
    ids = torch.from_numpy(np.delete(text.fitted, sorted(held_back(len(text.fitted))), axis=0))

    def stream(layer_output: bool) -> np.ndarray:
        with reference.leaving([3]) as after, reference.adding([(3, "mlp")]) as adding, torch.no_grad():
            reference.logits_at(ids, torch.arange(0))
        return (after[3] if layer_output else after[3] - adding[3, "mlp"]).numpy()

    whole = stream(True)
    first = min(made.fits.items())
    with trial.installed(reference, Overlay(SkipSet.parse("mlp1"), {first[0]: first[1].map})):
        variant = stream(False)
    assert place.name == "mlp3" and fitted.refitted
    np.testing.assert_allclose(fitted.map.bias, (whole - variant).mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)


class WholePasses:
    """What `Walk` gives, from whole passes."""

    def __init__(self, reference: Reference, tokens: np.ndarray) -> None:
        self.reference, self.tokens = reference, tokens

    def to(self, place: MapPlace, earlier: Overlay, _layer: int | None = None) -> Iterator[Activations]:
        with trial.installed(self.reference, earlier):
            yield from [gathering.activations(self.reference, row, place) for row in self.tokens]


@pytest.mark.parametrize(
    ("name", "form"), [("attn1_3", "fold"), ("attn2+mlp1_3", "fold+rank4"), ("block1+attn3", "linear")]
)
def test_refits_are_those_of_whole_passes(
    checkpoint: Checkpoint,
    reference: Reference,
    text: MomentsText,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    form: str,
) -> None:
    bench, wanted = planner(checkpoint, reference, text, SkipSet.parse(name)), Form.parse(form, 64)
    made = bench.plan(wanted)
    monkeypatch.setattr(bench, "loss", lambda overlay: float(overlay is made.overlay))
    walked = bench.refitted(made, wanted, text.fitted).overlay
    monkeypatch.setattr(plan, "Walk", WholePasses)
    whole = bench.refitted(made, wanted, text.fitted).overlay
    assert walked.maps.keys() == whole.maps.keys() and walked.weights.keys() == whole.weights.keys()
    for place, one in walked.maps.items():
        other = whole.maps[place]
        for mine, theirs in zip((*one.factors, one.bias), (*other.factors, other.bias), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4 * max(np.abs(theirs).max(), 1e-2))
    for weight, tensor in walked.weights.items():
        torch.testing.assert_close(tensor, whole.weights[weight], rtol=1e-3, atol=1e-4)
    assert bench.refitted(made, wanted, text.fitted).refit_losses == (1.0, 0.0)


def test_what_cannot_be_folded_has_a_bias_and_a_note(
    checkpoint: Checkpoint, reference: Reference, text: MomentsText
) -> None:
    bench = planner(checkpoint, reference, text, SkipSet.parse("attn0_2"))
    made = bench.plan(Form.parse("fold", 64))
    (first, one), (second, two) = sorted(made.fits.items())
    assert (first.name, one.form, one.fold) == ("attn0", "bias", None) and "before it" in one.note
    assert (second.name, two.form, two.note) == ("attn2", "fold", "")
    assert list(made.overlay.weights) == ["model.layers.1.mlp.down_proj.weight"]
    assert made.overlay.parameters == 2 * 64
    bench = planner(checkpoint, reference, text, SkipSet.parse("attn0"))
    with pytest.raises(
        UserError, match=r"fold: no sublayer of attn0 can be folded \(no sublayer that is there"
    ):
        bench.plan(Form.parse("fold", 64))
