"""Training is seeded, and goes on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.calib import adapters, heal, healer, training
from pipeline.store.records import HealSettings
from tests import adapters as adapted
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
