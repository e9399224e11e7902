"""A variant that is tried in memory is the variant that its file makes, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib.compensation import trial
from pipeline.calib.compensation.maps import LinearMap
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.calib.compensation.overlay import Overlay
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import BASE, SkipSet, UserError
from tests import tiny

RNG = np.random.default_rng(1)


def overlay(model: torch.nn.Module) -> Overlay:
    """A map of each kind, and a changed weight."""
    square = LinearMap((0.05 * RNG.normal(size=(64, 64)),), RNG.normal(size=64))
    low = LinearMap((RNG.normal(size=(64, 3)), 0.1 * RNG.normal(size=(3, 64))), RNG.normal(size=64))
    places = {"attn0": square, "mlp3": low, "block1-2": LinearMap((), 0.1 * RNG.normal(size=64))}
    name = "model.layers.0.mlp.down_proj.weight"
    weights = {name: model.get_parameter(name).detach() * 1.5}
    return Overlay(
        SkipSet((0, 1, 2), (1, 2, 3)), {MapPlace.parse(p): one for p, one in places.items()}, weights
    )


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "granite"])
def test_a_trial_is_what_the_file_makes_and_is_undone(tmp_path: Path, model_type: str) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny", model_type, num_hidden_layers=4)
    reference = Reference(folder)
    made = overlay(reference.model)
    made.write(tmp_path / "overlay.safetensors")
    tokens = RNG.integers(3, 96, (3, 10))
    whole = trial.Trial(reference, tokens).loss(Overlay(BASE))
    written = Reference(folder, made.skip, overlays=[tmp_path / "overlay.safetensors"])
    ids = torch.from_numpy(tokens)
    with torch.inference_mode():
        wanted = float(written.model(input_ids=ids, labels=ids, use_cache=False).loss)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert whole == pytest.approx(float(model(input_ids=ids, labels=ids).loss), abs=1e-4)
    assert trial.Trial(reference, tokens).loss(made) == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted - whole) > 1e-3
    assert trial.Trial(reference, tokens).loss(Overlay(BASE)) == whole


def test_a_loss_that_is_no_number_is_refused(reference: Reference, text: MomentsText) -> None:
    broken = Overlay(SkipSet.parse("mlp1"), {MapPlace.parse("mlp1"): LinearMap((), np.full(64, np.nan))})
    with pytest.raises(UserError, match="the loss of mlp1 is not finite"):
        trial.Trial(reference, text.held_out[:1]).loss(broken)
    assert np.isfinite(trial.Trial(reference, text.held_out[:1]).loss(Overlay(BASE)))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt_neox"])
def test_layers_below_the_first_change_are_run_once(tmp_path: Path, model_type: str) -> None:
    """In any order of variants; the losses are those of whole passes, bit for bit."""
    reference = Reference(tiny.checkpoint(tmp_path / "tiny", model_type, num_hidden_layers=4))
    tokens = RNG.integers(3, 96, (3, 10))
    overlays = [Overlay(SkipSet.parse(name)) for name in ("mlp3", "attn1", "block2-3", "mlp3")]
    overlays.insert(2, Overlay(BASE))
    name = next(n for n, _ in reference.model.named_parameters() if ".1." in n and n.endswith("weight"))
    changed = {name: reference.model.get_parameter(name).detach() * 1.5}
    overlays.append(Overlay(SkipSet.parse("attn2"), {}, changed, {MapPlace.parse("attn2"): name}))
    assert [one.first_layer for one in overlays] == [3, 1, 0, 2, 3, 1]
    shared = trial.Trial(reference, tokens)
    for one in overlays:
        with trial.installed(reference, one), torch.inference_mode():
            ids = torch.from_numpy(tokens)
            logits = reference.logits_at(ids, torch.arange(9))
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        assert shared.loss(one) == pytest.approx(float(wanted), rel=1e-5), one.skip.name
        assert shared.loss(one) == trial.Trial(reference, tokens).loss(one)


def test_a_trial_is_where_the_model_is(elsewhere: Reference) -> None:
    """Its ids, the maps and the folded weights, which are computed on the host, are moved there."""
    made, model = overlay(elsewhere.model), elsewhere.model
    on_host = replace(made, weights={name: torch.zeros(one.shape) for name, one in made.weights.items()})
    with torch.inference_mode(), trial.installed(elsewhere, on_host):
        parts = (*model.parameters(), *model.buffers())
        assert {one.device.type for one in parts} == {"meta"}
    rows = trial.Trial(elsewhere, RNG.integers(3, 96, (2, 10)))._rows
    assert {row.device.type for row in rows} == {"meta"} and len(rows) == 2
