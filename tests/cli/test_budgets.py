"""Choices for a time: what `cosine` solves, and what `evo` finds among the masks that keep the same time."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from pipeline import store
from pipeline.calib import latency_budget, selectors, similarity
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.cli import budgets, timing
from pipeline.evals.bench import bench
from pipeline.store.records import SimilarityRecord, SublayerTimes
from pipeline.types import SkipSet, UserError
from tests.cli.test_timing import fake_bench
from tests.known_statistics import evolution

TIMES = SublayerTimes(whole=1.0, attn=0.05, mlp=0.1)
COSINES = {"cosine_attn": np.array([[0.5, 0.6, 0.9, 0.8]]), "cosine_mlp": np.array([[0.9, 0.7, 0.5, 0.6]])}
LAYERS = 4


@pytest.fixture
def timed(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    measured = similarity.Similarity(Mock(SimilarityRecord), mean=COSINES, stderr={})
    monkeypatch.setattr(selectors.ModelStatistics, "similarity", measured)
    monkeypatch.setattr(timing, "sublayer_times", lambda *_: TIMES)
    return model


class Searches(selectors.ModelStatistics):
    """Searches that take a minute each and come to what is given, else to their start."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = list(answers)
        self.calls: list[tuple[Space, str, float | None]] = []

    def evolved(self, space, start, seed, options):
        self.calls.append((space, start().name, options.minutes))
        name = self.answers.pop(0) if self.answers else start().name
        assert SkipSet.parse(name) in space
        return evolution(space, name, seed, "generations").replaced(seconds=60.0)


def measured_as(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Sublayers really save `share` of what was thought."""

    def speedup(_: Path, __: latency_budget.TimeBudget):
        return lambda skip: TIMES.whole / (TIMES.whole - TIMES.of(skip) * share)

    monkeypatch.setattr(budgets, "_measure", speedup)


def choose(folder: Path, rule: str, statistics: selectors.ModelStatistics, kind: str = "any", **options):
    budget = latency_budget.TimeBudget(kind, options.pop("speedup", 1.2), None, 20)
    seed = options.pop("seed", 0)
    question = selectors.Question(kind, 0, LAYERS, statistics, seed, EvoOptions(**options))
    return budgets.choose(folder, budget, rule, question)


def test_a_choice_for_a_time_is_checked_and_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bench.BenchSettings] = []
    cosines = {"cosine_attn": np.array([[0.5, 0.6]]), "cosine_mlp": np.array([[0.9, 0.7]])}
    measured = similarity.Similarity(Mock(SimilarityRecord), mean=cosines, stderr={})
    monkeypatch.setattr(selectors.ModelStatistics, "similarity", measured)
    monkeypatch.setattr(bench, "bench", fake_bench(calls, {"mlp0": 1.3}))
    times = SublayerTimes(whole=1.0, attn=0.2, mlp=0.25)
    monkeypatch.setattr(timing, "sublayer_times", lambda *_: times)
    choice = choose(model, "cosine", selectors.ModelStatistics())
    assert [one.skip for one in choice.rounds] == [SkipSet((), (0,))]
    assert choice.reached and choice.seconds == times and choice.search is None
    assert choice.rounds[0].measured == pytest.approx(1.3) and choice.plain()["select"] == "cosine"
    assert store.check_passed(model / "mlp0.fp32.onnx") and calls[0].write and not calls[0].unchecked
    question = selectors.Question("any", 0, 2, selectors.ModelStatistics())
    for latency, message in (
        (2000.0, "2000 ms is what the whole model already keeps"),
        (0.0, "0 is not a number above"),
    ):
        with pytest.raises(UserError, match=message):
            budgets.choose(model, latency_budget.TimeBudget("any", None, latency, 20), "cosine", question)


def test_evo_searches_from_what_cosine_solved_with_the_times_that_were_measured(
    timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, 0.8)  # so that 1.2x takes 0.208 s of the thought ones, not 0.167
    searches = Searches("mlp1-3")
    choice = choose(timed, "evo", searches, minutes=10.0)
    *cosine, last = choice.rounds
    ((space, start, minutes),) = searches.calls
    assert SkipSet.parse(start) == cosine[-1].skip and minutes == 10.0
    assert cosine[0].measured < 1.2 <= cosine[-1].measured and len(cosine) >= 2
    assert {(0, 3), (1, 2)} <= set(space.front)
    assert last.skip.name == "mlp1-3" == choice.plain()["skip"] and last.measured >= 1.2 and choice.reached
    assert choice.plain()["runners_up"] == [("mlp1-3", 1.0)] and choice.plain()["select"] == "evo"
    assert "KL 1.0000; start: 1.0000 (mlp1-3)" in choice.text()


def test_a_finalist_that_misses_is_searched_for_again_with_what_is_left_of_the_minutes(
    timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speedup(_: Path, __: latency_budget.TimeBudget):
        def of(skip: SkipSet) -> float:  # the last two MLPs save half of what was thought
            saved = TIMES.of(skip) - 0.5 * TIMES.mlp * len({2, 3} & set(skip.mlp))
            return TIMES.whole / (TIMES.whole - saved)

        return of

    monkeypatch.setattr(budgets, "_measure", speedup)
    searches = Searches("mlp2-3")
    choice = choose(timed, "evo", searches, minutes=1.5, start="attn0-3")
    (_, first, minutes), (_, second, left) = searches.calls
    assert (first, minutes) == ("attn0-3", 1.5) and (second, left) == ("mlp0-3", 0.5)
    assert [one.skip.name for one in choice.rounds[-2:]] == ["mlp2-3", "mlp0-3"]
    assert choice.reached and choice.rounds[-2].measured < 1.2 <= choice.rounds[-1].measured


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("greedy", {}, "--select greedy takes a --count; for a time choose cosine or evo"),
        ("cosine", {"minutes": 1.0}, "--minutes belongs to --select evo"),
        ("evo", {"start": "last"}, "--start last takes a --count; for a time name a skip set, or cosine"),
        ("evo", {"start": "mlp9"}, "layer 9 does not exist"),
        ("evo", {"start": "block1", "kind": "attn"}, "block1 leaves out more than attn"),
        ("evo", {"seed": -1}, "--seed -1 is negative"),
        ("evo", {"speedup": float("inf")}, "a speed-up of inf is none"),
    ],
)
def test_nothing_is_measured_before_the_options_are_known_to_be_good(
    rule: str, options: dict, message: str, timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "sublayer_times", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match=message):
        choose(timed, rule, Searches(), **{"speedup": 1.1, **options})


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("cosine", {"speedup": 9.0}, "was asked"),
        ("evo", {"speedup": 9.0}, "was asked"),
    ],
)
def test_what_is_no_choice_for_a_time_is_refused(
    rule: str, options: dict, message: str, timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, 1.0)
    with pytest.raises(UserError, match=message):
        choose(timed, rule, Searches(), **{"speedup": 1.1, **options})


def test_where_cosine_does_not_reach_the_time_nothing_is_searched(
    timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, 0.01)
    searches = Searches()
    choice = choose(timed, "evo", searches)
    assert not choice.reached and searches.calls == [] and choice.search is None
    assert "the time was not reached" in choice.text()


def test_where_no_finalist_of_the_search_keeps_the_time_cosines_stays(
    timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage = latency_budget.candidates("any", selectors.ModelStatistics(timed).similarity)
    kept = latency_budget.solve(damage, TIMES, TIMES.whole * (1 - 1 / 1.2))
    monkeypatch.setattr(budgets, "_measure", lambda *_: lambda skip: 1.25 if skip == kept else 1.1)
    choice = choose(timed, "evo", Searches(), start="attn0-3")
    assert choice.reached and choice.rounds[-1].skip == kept and choice.search is None
    assert choice.plain()["select"] == "cosine" and len(choice.rounds) > 1
