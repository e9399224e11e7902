"""Every rule on statistics whose answer is known, its edges, and what is said where statistics lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib import race, search, selectors, similarity
from pipeline.models import checkpoint, texts
from pipeline.store.records import GreedyRecord, Removal, TextSource
from pipeline.types import BASE, SkipSet, UserError
from tests import tiny

L = 6


class Known(selectors.ModelStatistics):
    """Cosines and distances made by hand."""

    similarity = similarity.Similarity(
        tiny.similarity_record(),
        {
            "cosine_layer": np.array([[0.5, 0.9, 0.8, 0.9, 0.7, 0.1]]),
            "cosine_attn": np.array([[0.1, 0.2, 0.95, 0.96, 0.97, 0.3]]),
            "cosine_mlp": np.array([[0.1, 0.9, 0.4, 0.5, 0.98, 0.2]]),
            "angular": np.abs(
                np.subtract.outer(np.array([0, 3, 5, 5.5, 6, 9, 20]), np.array([0, 3, 5, 5.5, 6, 9, 20]))
            )
            / 100,
            "angular_mean": np.zeros((1, L + 1, L + 1)),
        },
        {},
    )

    def removals(self, kind: str, count: int) -> GreedyRecord:
        steps = tuple(
            Removal(removed=f"{kind}{L - 1 - k}", loss=1.0 + k, others=((f"{kind}0", 9.0, 4),))
            for k in range(L)
        )
        return GreedyRecord(
            model="tiny", weights="abc", kind=kind, samples=4, length=8, every=2, doubt=1.5,
            texts=TextSource(origin="words"), base_loss=0.5, steps=steps, flops=1.0, plain_flops=3.0,
        )  # fmt: skip


def chosen(name: str, kind: str, count: int, layers: int = L, **more) -> selectors.Choice:
    return selectors.choose(
        name, selectors.Question(kind, count, layers, more.pop("statistics", Known()), **more)
    )


@pytest.mark.parametrize(
    ("name", "kind", "count", "expected"),
    [
        ("last", "attn", 2, "attn4-5"),
        ("last-but-final", "block", 2, "block3-4"),
        ("angular", "block", 1, "block3"),  # 5 → 5.5 and 5.5 → 6 are equally near: the deeper
        ("angular", "block", 2, "block2-3"),
        ("angular", "block", 3, "block1-3"),
        ("cosine", "attn", 2, "attn3-4"),
        ("cosine", "mlp", 2, "mlp1_4"),
        ("cosine", "block", 1, "block3"),  # 0.9 twice: the deeper
        ("joint", "block", 4, "attn2-4+mlp4"),
        ("joint", "block", 5, "attn2-4+mlp1_4"),
        ("greedy", "mlp", 2, "mlp4-5"),
    ],
)
def test_rules_choose_what_they_say(name: str, kind: str, count: int, expected: str) -> None:
    choice = chosen(name, kind, count)
    assert choice.skip.name == expected
    if choice.statistic:
        runs = {"angular": L - count + 1, "joint": 2 * L, "greedy": count + 1}.get(name, L)
        assert (
            len(choice.chosen) == (1 if name == "angular" else count)
            and len(choice.chosen + choice.stays) == runs
        )
        order = [value for _, value in choice.chosen + choice.stays]
        assert order == sorted(order, reverse=name not in ("angular", "greedy"))


@pytest.mark.parametrize("name", selectors.names())
def test_edges(name: str) -> None:
    kind = "block"
    assert chosen(name, kind, 0).skip == SkipSet()
    if name == "last-but-final":
        with pytest.raises(UserError, match="keeps the final layer"):
            chosen(name, kind, L)
        assert chosen(name, kind, 0, layers=1).skip == SkipSet()
    elif name == "joint":
        assert len(chosen(name, kind, L).skip.attention + chosen(name, kind, L).skip.mlp) == L
    else:
        assert chosen(name, kind, L).skip == SkipSet.of(kind, range(L))
    with pytest.raises(UserError, match="does not fit"):
        chosen(name, kind, L + 1)
    with pytest.raises(UserError, match="not a kind"):
        chosen(name, "norm", 1)


def test_random_is_seeded_and_differs() -> None:
    draws = {chosen("random", "mlp", 3, seed=seed).skip for seed in range(20)}
    assert chosen("random", "mlp", 3, seed=4) == chosen("random", "mlp", 3, seed=4) and len(draws) > 5
    assert all(len(skip.mlp) == 3 and not skip.attention for skip in draws)


@pytest.mark.parametrize("name", ["angular", "cosine", "joint", "greedy"])
def test_without_statistics_the_command_is_named(name: str, workdir: Path) -> None:
    with pytest.raises(UserError, match="name the model"):
        chosen(name, "block", 1, statistics=selectors.ModelStatistics())
    if name in ("angular", "joint"):
        with pytest.raises(UserError, match="take --kind block"):
            chosen(name, "attn", 1)
    with pytest.raises(UserError, match="no selector 'best'; choose from angular, cosine"):
        chosen("best", "block", 1)


# ---- greedy ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(workdir: Path) -> Path:
    tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=5)
    tiny.tokenizer(workdir / "models" / "tiny")
    return checkpoint.resolve("models/tiny").folder


def plain_loss(folder: Path, skip: SkipSet, tokens: np.ndarray) -> float:
    """The mean loss at every second position, of one whole pass over all sequences."""
    from pipeline.models.reference import Reference

    reference = Reference(folder)
    with torch.inference_mode(), reference.without(skip):
        logits = reference.model(torch.from_numpy(tokens), use_cache=False).logits
    at = np.arange(race.EVERY - 1, tokens.shape[1] - 1, race.EVERY)
    scores = torch.log_softmax(logits[:, at].double(), dim=-1)
    return -float(scores.gather(2, torch.from_numpy(tokens[:, at + 1])[..., None]).mean())


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
    found = search.removals(folder, kind, 3, texts.OWN, 10, 24)
    assert found.base_loss == pytest.approx(plain_loss(folder, BASE, tokens), abs=1e-5)
    gone = BASE
    for step in found.steps:
        losses = {}
        for layer in range(5):
            one = SkipSet.of(kind, [layer])
            if not set(one.attention + one.mlp) & set(gone.attention + gone.mlp):
                losses[one.name] = plain_loss(folder, gone | one, tokens)
        assert step.removed == min(losses, key=lambda name: losses[name])
        assert step.loss == pytest.approx(losses[step.removed], abs=1e-5)
        assert {name for name, *_ in step.others} == set(losses) - {step.removed}
        gone |= SkipSet.parse(step.removed)
    assert 0 < found.flops < found.plain_flops


def test_greedy_goes_on_from_a_shorter_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = search.removals(folder, "mlp", 2, texts.OWN, 6, 16)
    runs = []
    real = race.Race.run
    monkeypatch.setattr(race.Race, "run", lambda one, gone: runs.append(gone.name) or real(one, gone))
    four = search.removals(folder, "mlp", 4, texts.OWN, 6, 16)
    assert four.steps[:2] == two.steps and len(runs) == 2
    assert search.removals(folder, "mlp", 3, texts.OWN, 6, 16).steps[:4] == four.steps and len(runs) == 2
    search.removals(folder, "mlp", 5, texts.OWN, 6, 16)
    with pytest.raises(UserError, match="no mlp is left"):
        search.removals(folder, "mlp", 6, texts.OWN, 6, 16)
    search.removals(folder, "mlp", 1, texts.OWN, 5, 16)  # another text is another order
    assert runs[-1] == "base"


def test_the_race_drops_only_what_is_behind_beyond_doubt() -> None:
    names = [SkipSet.of("mlp", [k]) for k in range(4)]
    rng = np.random.default_rng(0)
    common = rng.normal(3, 1, 400)  # positions differ far more than candidates
    held = {one.name: common + 0.01 * k + rng.normal(0, 0.1, 400) for k, one in enumerate(names)}
    held[names[3].name] = common + 1
    few, many = ({name: np.split(values[:n], 2) for name, values in held.items()} for n in (40, 400))
    assert race.still_racing(names, few) == names[:3]  # 0.02 apart, 0.022 a standard error
    assert race.still_racing(names, many) == names[:2]


def test_a_poisoned_model_is_refused(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "poisoned", vocab_size=tiny.WORDS)
    tiny.tokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(source)
    with pytest.raises(UserError, match="not finite"):
        search.removals(checkpoint.resolve("models/poisoned").folder, "attn", 1, texts.OWN, 2, 16)
