"""The greedy order: what a plain search would remove, kept on disk, continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline import store
from pipeline.calib import race, search
from pipeline.calib.compensation import overlay
from pipeline.calib.compensation.forms import Form, fit
from pipeline.calib.compensation.moment_files import HELD_OUT, MomentsText
from pipeline.calib.compensation.overlay import compose
from pipeline.calib.compensation.plan import single_places
from pipeline.calib.compensation.workbench import Workbench
from pipeline.models import checkpoint, texts
from pipeline.store.records import GreedyRecord, Removal, read
from pipeline.types import BASE, SkipSet, UserError
from tests import tiny

LINEAR = Form("linear", False, None)


@pytest.fixture
def folder(workdir: Path) -> Path:
    tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=5)
    tiny.tokenizer(workdir / "models" / "tiny")
    return checkpoint.resolve("models/tiny").folder


def plain_loss(
    folder: Path, skip: SkipSet, tokens: np.ndarray, stand_in: overlay.Overlay | None = None
) -> float:
    """The mean loss at every second position, of one whole pass over all sequences."""
    from pipeline.models.reference import Reference

    reference = Reference(folder)
    with torch.inference_mode(), reference.without(skip, stand_in.parts() if stand_in else None):
        logits = reference.model(torch.from_numpy(tokens), use_cache=False).logits
    at = np.arange(race.EVERY - 1, tokens.shape[1] - 1, race.EVERY)
    scores = torch.log_softmax(logits[:, at].double(), dim=-1)
    return -float(scores.gather(2, torch.from_numpy(tokens[:, at + 1])[..., None]).mean())


def assert_cheapest_first(order: GreedyRecord, loss_without: Callable[[SkipSet], float]) -> None:
    """Each removal is the one of all five layers' that are left which raises the loss least."""
    gone = BASE
    for step in order.steps:
        losses = {}
        for layer in range(5):
            one = SkipSet.of(order.kind, [layer])
            if not set(one.attention + one.mlp) & set(gone.attention + gone.mlp):
                losses[one.name] = loss_without(gone | one)
        assert step.removed == min(losses, key=lambda name: losses[name])
        assert step.loss == pytest.approx(losses[step.removed], abs=1e-5)
        assert {name for name, *_ in step.others} == set(losses) - {step.removed}
        gone |= SkipSet.parse(step.removed)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "phi", "qwen3"])
@pytest.mark.parametrize("kind", ["attn", "mlp", "block"])
def test_greedy_removes_what_a_plain_search_would(
    family: str, kind: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no candidate leaves the race before its end."""
    monkeypatch.setattr(race, "DOUBT", 1e9)
    source = tiny.checkpoint(workdir / "models" / "tiny", family, vocab_size=tiny.WORDS, num_hidden_layers=5)
    tiny.tokenizer(source)
    folder = checkpoint.resolve("models/tiny").folder
    tokens, _ = texts.cut(folder, texts.OWN, 24, 10)
    order = search.GreedySearch(folder, texts.OWN, 10, 24).removals(kind, 3)
    assert order.base_loss == pytest.approx(plain_loss(folder, BASE, tokens), abs=1e-5)
    assert_cheapest_first(order, lambda skip: plain_loss(folder, skip, tokens))
    assert 0 < order.flops < order.plain_flops


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attn", "mlp", "block"])
def test_greedy_with_maps_removes_what_compensated_variants_lose_least_by(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each candidate against a compensation that `compensate` plans for it, in a whole pass."""
    monkeypatch.setattr(race, "DOUBT", 1e9)
    order = search.GreedySearch(folder, texts.OWN, 24, 16).compensated_removals(kind, 3)
    source = checkpoint.open_checkpoint(folder)
    text = MomentsText.cut(source, texts.OWN, 24, 16)
    tokens, _ = texts.cut(folder, texts.OWN, 16, search.SAMPLES, skip=24 + HELD_OUT)
    assert order.base_loss == pytest.approx(plain_loss(folder, BASE, tokens), abs=1e-5)

    def compensated_loss(skip: SkipSet) -> float:
        bench = Workbench(source, skip, text)
        fits = {place: fit(bench.moments.read(place), LINEAR) for place in single_places(skip)}
        return plain_loss(folder, skip, tokens, compose(skip, fits, bench.projections))

    assert_cheapest_first(order, compensated_loss)


def test_an_order_with_maps_is_of_the_text_that_they_are_fitted_on(folder: Path) -> None:
    plain = search.GreedySearch(folder, texts.OWN, 6, 16).removals("mlp", 2)
    one = search.GreedySearch(folder, texts.OWN, 24, 16).compensated_removals("mlp", 1)
    two = search.GreedySearch(folder, texts.OWN, 24, 16).compensated_removals("mlp", 2)
    assert two.steps[:1] == one.steps and two.maps_of != plain.maps_of is None
    assert one.steps[0].loss != plain.steps[0].loss
    other = search.GreedySearch(folder, texts.OWN, 25, 16).compensated_removals("mlp", 1)
    assert other.maps_of != two.maps_of and len(other.steps) == 1
    assert read(GreedyRecord, Path("calib/tiny/greedy-mlp.json")) == plain


def test_maps_need_as_much_text_as_compensation(folder: Path) -> None:
    with pytest.raises(UserError, match="take --samples"):
        search.GreedySearch(folder, texts.OWN, 2, 16).compensated_removals("mlp", 1)


def test_greedy_goes_on_from_a_shorter_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = search.GreedySearch(folder, texts.OWN, 6, 16).removals("mlp", 2)
    runs = []
    real = race.Race.run
    monkeypatch.setattr(race.Race, "run", lambda one, gone: runs.append(gone.name) or real(one, gone))
    four = search.GreedySearch(folder, texts.OWN, 6, 16).removals("mlp", 4)
    assert four.steps[:2] == two.steps and len(runs) == 2
    assert (
        search.GreedySearch(folder, texts.OWN, 6, 16).removals("mlp", 3).steps[:4] == four.steps
        and len(runs) == 2
    )
    search.GreedySearch(folder, texts.OWN, 6, 16).removals("mlp", 5)
    with pytest.raises(UserError, match="no mlp is left"):
        search.GreedySearch(folder, texts.OWN, 6, 16).removals("mlp", 6)
    search.GreedySearch(folder, texts.OWN, 5, 16).removals("mlp", 1)  # another text is another order
    assert runs[-1] == "base"


def test_a_poisoned_model_is_refused(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "poisoned", vocab_size=tiny.WORDS)
    tiny.tokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(source)
    with pytest.raises(UserError, match="not finite"):
        search.GreedySearch(checkpoint.resolve("models/poisoned").folder, texts.OWN, 2, 16).removals(
            "attn", 1
        )


def test_the_order_is_kept_as_a_record_that_names_its_text(folder: Path) -> None:
    Path("a.txt").write_text("The grass of the field is green and the sky is blue. " * 60)
    order = search.GreedySearch(folder, texts.TextInput((Path("a.txt"),)), 2, 16).removals("mlp", 1)
    written = read(GreedyRecord, Path("calib/tiny/greedy-mlp.json"))
    assert written == order and written.texts.origin == ("../../a.txt",)
    assert written.weights == checkpoint.open_checkpoint(folder).identity and len(written.steps) == 1


def test_an_order_of_version_0_1_is_continued(folder: Path) -> None:
    import json

    order = search.GreedySearch(folder, texts.OWN, 2, 16).removals("mlp", 1)
    path = Path("calib/tiny/greedy-mlp.json")
    old = json.loads(path.read_text())
    del old["texts"]["characters"]
    path.write_text(json.dumps(old))
    assert search.GreedySearch(folder, texts.OWN, 2, 16).removals("mlp", 2).steps[:1] == order.steps


def test_what_other_rules_know_can_be_read_while_an_order_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record has a lock of its own: neither the folder's nor another kind's is taken."""
    run, taken = race.Race.run, list[Path]()

    def run_and_lock(self: race.Race, removed: SkipSet) -> Removal:
        calib = store.Project().calib("tiny")
        for place in (calib, calib / "greedy-attn.json"):
            with store.lock(place, wait=False, make=False):
                taken.append(place)
        with pytest.raises(BlockingIOError), store.lock(calib / "greedy-mlp.json", wait=False, make=False):
            pass
        return run(self, removed)

    monkeypatch.setattr(race.Race, "run", run_and_lock)
    order = search.GreedySearch(folder, texts.OWN, 2, 16).removals("mlp", 1)
    assert len(order.steps) == 1 and len(taken) == 2
