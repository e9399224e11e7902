"""Training is seeded, and goes on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.calib import adapters, heal, healer, training
from pipeline.store.records import HealSettings
from pipeline.types import Provider, SkipSet
from tests import adapters as adapted
from tests import tiny
from tests.learning import SMALL, record, variant


@pytest.mark.slow
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
    place = adapters.folder(Path("calib/tiny"), adapted.VARIANT, "stopped")
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


@pytest.mark.parametrize("state", [None, "", '{"global_step": 1'])
def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path: Path, state: str | None) -> None:
    """The trainer writes its state last, and not atomically."""
    for step, text in (("5", "{}"), ("10", state)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert training._last_whole(tmp_path) == str(tmp_path / "checkpoint-5")
    assert not (tmp_path / "checkpoint-10").exists()
    (tmp_path / "checkpoint-5" / "trainer_state.json").unlink()
    assert training._last_whole(tmp_path) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_training_is_where_the_model_is(device: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' trainer takes every GPU that it sees: the CPU has to be asked for, and one GPU too."""

    class Arguments:
        _n_gpu = 2

        def __init__(self, **options: Any) -> None:
            self.options = options

    monkeypatch.setattr(training, "TrainingArguments", Arguments)
    made: Any = training._arguments(HealSettings(), Path("folder"), device)
    on_gpu = device == "cuda"
    assert (made.options["use_cpu"], made.options["dataloader_pin_memory"]) == (not on_gpu, on_gpu)
    assert made._n_gpu == on_gpu and "bf16" not in made.options


def test_the_model_computes_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    """And so does every pass of the training; the adapter is in fp32, and is trained."""
    folder = tiny.checkpoint(tmp_path / "tiny", num_hidden_layers=3)
    settings = HealSettings(steps=2, batch=2, rank=4, alpha=4, warmup=1, precision="bf16")
    pupil = healer.Healer(folder, SkipSet.parse("block1"), settings)
    own = {name: p for name, p in pupil.student.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in own.items()}
    streams = list[torch.dtype]()
    pupil.reference.layers[2].register_forward_hook(
        lambda *of: streams.append((of[2] if isinstance(of[2], torch.Tensor) else of[2][0]).dtype)
    )
    losses = training.train(pupil, np.random.default_rng(0).integers(3, 96, (4, 12)), tmp_path / "partial")
    assert np.isfinite(losses).all() and set(streams) == {torch.bfloat16} and len(losses) == 2
    assert pupil.reference.model.dtype == torch.bfloat16 and {p.dtype for p in own.values()} == {
        torch.float32
    }
    assert any(not torch.equal(before[name], p) for name, p in own.items())
