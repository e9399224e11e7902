from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.report import collect, recommend
from pipeline.report.recommend import Recommendation
from tests import results

MODEL = "SmolLM2-135M-Instruct"


def by_budget() -> dict[str, Recommendation]:
    return {one.budget: one for one in recommend.recommend(collect.collect())}


def test_recommendation_within_each_budget(workdir: Path) -> None:
    results.small_grid(MODEL)
    recommended = by_budget()
    one = recommended["at most 1 % loss of average"]
    assert one.choice and one.choice.artefact.variant == "attn24-31"
    assert (
        "1.09× faster (8.0 % [7.0, 9.0] of the time saved at 100 tokens; ceiling 8.5 %), "
        "loses 0.5 ±0.7 points of the average" in one.words
    )
    # loss 0.5 with error √2 · 0.5: Φ((1 − 0.5) / 0.707) = Φ(0.707) = 0.760
    assert any("76% probability" in doubt for doubt in one.doubts)
    assert one.evidence[0][1].name.endswith(".json")
    for budget in ("at most 2 % loss of average", "at least 20 % of the time saved"):
        choice = recommended[budget].choice
        assert choice and choice.artefact.variant == "block24-31"
    none = recommended["at least 30 % of the time saved"]
    assert none.choice is None and "none of 3 variants fits; the nearest is block24-31" in none.words


def test_a_time_that_its_interval_leaves_open_is_a_doubt(workdir: Path) -> None:
    results.small_grid(MODEL)

    def doubts(budget: str) -> str:
        return "; ".join(by_budget()[budget].doubts)

    assert "does not exclude" not in doubts("at least 20 % of the time saved")
    results.bench(MODEL, "block24-31", 25.0, interval=(-8.0, 47.0))
    assert "that less than 20 % of the time is saved: its 95 % interval begins at -8.0 %" in doubts(
        "at least 20 % of the time saved"
    )
    assert "that it is no faster than the base" in doubts("at most 2 % loss of average")


def test_no_recommendation_of_what_is_unchecked_disturbed_or_without_base(workdir: Path) -> None:
    results.small_grid(MODEL)
    results.check(MODEL, "attn24-31", passed=False)
    results.bench(MODEL, "block24-31", 25.0, enough_clean=False)
    one = by_budget()["at most 5 % loss of average"]
    assert one.choice is None
    assert "none of 2 variants fits, 1 of them not counted: too few undisturbed samples" in one.words
    shutil.rmtree("evals/results")
    results.whole(MODEL, "attn24-31", 8.0, 0.6)
    assert recommend.recommend(collect.collect()) == []


def test_a_loss_is_compared_in_percent_of_the_bases(workdir: Path) -> None:
    for variant, saved, value in (("base", 0.0, 0.50), ("attn24-31", 8.0, 0.51)):
        results.bench(MODEL, variant, saved)
        results.score(MODEL, variant, "c4-loss", value, stderr=None)
    one = by_budget()["at most 2 % loss of c4-loss"]
    assert one.choice and abs(one.choice.loss - 2) < 1e-9 and "loses 2.0 % of c4-loss" in one.words
    assert "no standard error is known: how sure it is cannot be told" in one.doubts


def test_another_yardstick_is_named(workdir: Path) -> None:
    for variant, saved, value in (("base", 0.0, 0.78), ("attn24-31", 8.0, 0.775)):
        results.bench(MODEL, variant, saved)
        results.score(MODEL, variant, "smoke", value)
    one = by_budget()["at most 1 % loss of smoke"]
    assert one.choice and "points of smoke" in one.words


def test_a_compensation_that_is_known_by_its_loss_alone_is_in_doubt(workdir: Path) -> None:
    for variant, saved, value in (
        ("base", 0.0, 0.5),
        ("mlp24-31", 15.0, 0.6),
        ("mlp24-31~linear", 12.0, 0.505),
    ):
        results.whole(MODEL, variant, saved, value)
        results.check(MODEL, variant)
    doubt = "a compensation wins back loss before it wins back answers"
    assert not any(doubt in one for r in by_budget().values() for one in r.doubts)
    for path in Path("evals/results").rglob("*.score.*.json"):
        path.unlink()
    for variant, value in (("base", 0.5), ("mlp24-31", 0.6), ("mlp24-31~linear", 0.505)):
        results.score(MODEL, variant, "c4-loss", value)
    one = by_budget()["at most 2 % loss of c4-loss"]
    assert one.choice and one.choice.artefact.name == "mlp24-31~linear.fp32"
    assert any(doubt in words for words in one.doubts)
