"""What is trained, where the stream is compared, and who teaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from pipeline.calib import heal, healer, losses
from pipeline.models import head
from pipeline.models.reference import Reference
from pipeline.store.records import HealSettings
from pipeline.types import BASE, SkipSet
from tests import overlays, tiny
from tests.learning import SMALL, variant


@pytest.mark.slow
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


@pytest.mark.parametrize("loss", ["ce", "kl", "aux"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_a_loss_in_pieces_is_the_loss(
    loss: str, model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch's logits do not fit, value and gradients are those of the whole."""
    folder = tiny.checkpoint(tmp_path, model_type, num_hidden_layers=3)
    settings = HealSettings(rank=4, alpha=4, dropout=0.0, loss=loss)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 96, (2, 12)))

    def measured() -> tuple[float, list[torch.Tensor]]:
        pupil = healer.Healer(folder, SkipSet.parse("block1"), settings)
        value = pupil.objective(ids)
        value.backward()
        return float(value), [p.grad for p in pupil.student.parameters() if p.grad is not None]

    whole, gradients = measured()
    monkeypatch.setattr(head, "LOGIT_NUMBERS", 2 * 96 * 5)
    pieces, others = measured()
    assert pieces == pytest.approx(whole, rel=1e-5) and len(gradients) == len(others) > 0
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_cut_is_after_each_run_of_layers_that_lack_something() -> None:
    assert healer.cuts(SkipSet.parse("block2-3+attn6"), 8) == [3, 6]
    assert healer.cuts(SkipSet.parse("mlp7"), 8) == [7] and healer.cuts(BASE, 8) == []


def test_the_student_lacks_the_sublayers_and_the_teacher_has_them(tmp_path: Path) -> None:
    folder, skip = tiny.checkpoint(tmp_path, num_hidden_layers=3), SkipSet.parse("block1")
    pupil = healer.Healer(folder, skip, HealSettings(rank=4, alpha=4))
    tokens = np.random.default_rng(0).integers(3, 96, (3, 12))

    def loss(left_out: SkipSet) -> float:
        model = Reference(folder, left_out).model
        ids = torch.from_numpy(tokens)
        with torch.no_grad():
            return float(losses.cross_entropy(model(ids).logits, ids))

    # A fresh adapter's second matrix is zero: the student is the plain variant.
    assert pupil.mean_loss(tokens) == pytest.approx(loss(skip), abs=1e-4)
    assert pupil.mean_loss(tokens, teacher=True) == pytest.approx(loss(BASE), abs=1e-4)
    assert pupil.trained == 2 * 3 * 4 * (64 + 96)  # two MLPs of three matrices, rank 4


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_student_of_a_compensated_variant_has_its_maps_and_the_teacher_has_not(
    loss: str, model_type: str, tmp_path: Path
) -> None:
    """Its folded weight too, in the backward pass that comes after the teacher's own."""
    folder = tiny.checkpoint(tmp_path, model_type, num_hidden_layers=3)
    skip, folded = SkipSet.parse("mlp1+attn2"), "model.layers.1.self_attn.o_proj.weight"
    overlay = overlays.make(folder, skip, folded=folded)
    settings = HealSettings(rank=4, alpha=4, dropout=0.0, loss=loss, targets=("q_proj", "down_proj"))
    pupil = healer.Healer(folder, skip, settings, overlay)
    tokens = np.random.default_rng(0).integers(3, 96, (2, 12))
    ids = torch.from_numpy(tokens)
    reference = Reference(folder, skip, overlays=[overlay])
    whole = Reference(folder)

    def expected(of: Reference) -> float:
        with torch.no_grad():
            return float(losses.cross_entropy(of.model(ids).logits, ids))

    assert expected(reference) != pytest.approx(expected(Reference(folder, skip)), abs=1e-4)
    assert pupil.mean_loss(tokens) == pytest.approx(expected(reference), abs=1e-4)
    assert pupil.mean_loss(tokens, teacher=True) == pytest.approx(expected(whole), abs=1e-4)

    # The gradient of the second matrices, of which the adapter's product is linear, by another way: peft
    # around a reference that has the overlay for good.
    student = get_peft_model(reference.model, pupil.student.peft_config["default"])
    named = dict(student.named_parameters())
    with torch.no_grad():
        for name, parameter in pupil.student.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
                named[name].copy_(parameter)
    pupil.objective(ids).backward()
    logits = student(ids).logits
    value = losses.cross_entropy(logits, ids)
    if loss == "kl":
        with torch.no_grad():
            wanted = whole.model(ids).logits
        value = value + losses.divergence(logits, wanted)
    value.backward()
    for name, parameter in pupil.student.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter.grad, named[name].grad, rtol=1e-3, atol=1e-6)
