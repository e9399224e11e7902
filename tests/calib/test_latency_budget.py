"""The integer programme against brute force, and the loop that measures what it chose."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from pipeline import store
from pipeline.calib import calibrate, latency_budget, similarity
from pipeline.calib.selectors import ModelStatistics, Question
from pipeline.cli import budgets, timing
from pipeline.evals.bench import bench
from pipeline.graphs import export
from pipeline.models import checkpoint, texts
from pipeline.store.records import SublayerTimes
from pipeline.types import SkipSet, UserError
from tests import tiny

TIMES = SublayerTimes(whole=20.0, attn=1.0, mlp=2.5)


def some(seed: int, layers: int = 4) -> dict[SkipSet, float]:
    rng = np.random.default_rng(seed)
    return {
        SkipSet.of(kind, [k]): float(rng.uniform(0.01, 1)) for kind in ("attn", "mlp") for k in range(layers)
    }


@pytest.mark.parametrize("seed", range(12))
def test_the_solution_is_that_of_brute_force(seed: int) -> None:
    damage, times = some(seed), TIMES
    saved = float(np.random.default_rng(seed).uniform(0.5, 13))
    best = min(
        (
            sum(damage[one] for one in subset)
            for n in range(len(damage) + 1)
            for subset in itertools.combinations(damage, n)
            if sum(times.of(one) for one in subset) >= saved
        ),
    )
    chosen = latency_budget.solve(damage, times, saved)
    assert times.of(chosen) >= saved - 1e-6
    assert sum(damage[one] for one in damage if not one - chosen) == pytest.approx(best, abs=1e-6)


def test_what_cannot_be_reached_is_said() -> None:
    with pytest.raises(UserError, match=r"predicted to give 3\.33x, and 4\.00x was asked"):
        latency_budget.choose(some(0), TIMES, 4.0, lambda skip: 1.0)
    for speedup in (1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="is none"):
            latency_budget.choose(some(0), TIMES, speedup, lambda skip: 1.0)


@pytest.mark.parametrize(
    ("speedup", "milliseconds", "length", "message"),
    [
        (math.inf, None, 20, "a speed-up of inf is none"),
        (None, math.nan, 20, "--latency-ms nan is not a number above 0"),
        (None, math.inf, 20, "--latency-ms inf is not a number above 0"),
        (None, -1.0, 20, "--latency-ms -1 is not a number above 0"),
        (1.2, None, 0, "--length 0 is not at least 1"),
    ],
)
def test_a_budget_that_nothing_keeps_is_refused(
    speedup: float | None, milliseconds: float | None, length: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        latency_budget.TimeBudget("any", speedup, milliseconds, length).refuse_nonsense()


@pytest.mark.parametrize("truth", [0.6, 0.85, 1.2])
def test_a_finalist_that_misses_is_chosen_again_with_corrected_times(truth: float) -> None:
    """Sublayers that really take `truth` times what was thought."""
    thought, real = TIMES, TIMES.scaled(truth)
    rounds, reached, _ = latency_budget.choose(
        some(3), thought, 1.25, lambda skip: real.whole / (real.whole - real.of(skip))
    )
    assert reached and rounds[-1].measured >= 1.25
    assert all(one.measured < 1.25 for one in rounds[:-1]) and (truth != 0.6 or len(rounds) > 1)


def test_what_the_machine_never_gives_ends() -> None:
    rounds, reached, _ = latency_budget.choose(some(1), TIMES, 1.5, lambda skip: 1.01)
    assert not reached and 1 <= len(rounds) <= latency_budget.ROUNDS
    assert (
        latency_budget.choose(some(1), TIMES, 1.2, lambda skip: 0.9)[1] is False
    )  # slower than the whole model


def test_only_a_time_that_nothing_keeps_ends_the_rounds() -> None:
    """What else goes wrong in a later round is said."""

    def tried(error: UserError) -> latency_budget.Approach:
        answers = Mock(side_effect=[SkipSet((), (0,)), error])
        return latency_budget.approach(answers, some(3), TIMES, 1.2, lambda _: 1.01)

    rounds, reached, _ = tried(latency_budget.OutOfReach("too much was asked"))
    assert len(rounds) == 1 and not reached
    with pytest.raises(UserError, match="a loss is not finite"):
        tried(UserError("a loss is not finite"))


def test_candidates_are_the_kind_asked_for() -> None:
    statistics = similarity.Similarity(
        tiny.similarity_record(),
        {f"cosine_{kind}": np.full((1, 3), 0.9) for kind in ("layer", "attn", "mlp")},
        {},
    )
    assert (
        len(latency_budget.candidates("any", statistics)) == 6
        and len(latency_budget.candidates("block", statistics)) == 3
    )
    assert set(latency_budget.candidates("attn", statistics)) == {SkipSet((k,)) for k in range(3)}
    with pytest.raises(UserError, match="not a kind"):
        latency_budget.candidates("norm", statistics)


@pytest.mark.slow
def test_times_are_measured_once_inside_the_graph_and_the_finalist_is_checked(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.checkpoint(
        workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=6, intermediate_size=512
    )
    tiny.tokenizer(source)
    opened = checkpoint.resolve("models/tiny")
    base = export.export_base(opened)
    times = timing.sublayer_times(base, 20)
    assert times.whole > 0 and times.attn >= 0 and times.mlp >= 0
    with monkeypatch.context() as patch:
        patch.setattr(bench, "bench", lambda *a, **k: pytest.fail("the times are kept"))
        assert timing.sublayer_times(base, 20) == times
    assert not list(store.Project().results("tiny").glob("*.bench.json"))  # probes leave no results
    calibrate.calibrate(opened.folder, texts.OWN, calibrate.CalibrationSettings(2, 16))
    file = store.Project().calib("tiny") / "times-fp32-20.json"
    store.write_json(file, {**store.read_json(file), "seconds": {"whole": 1.0, "attn": 0.1, "mlp": 0.1}})
    question = Question("block", 0, 6, ModelStatistics(opened.folder))
    budget = latency_budget.TimeBudget("mlp", 1.0001, None, 20)
    rounds = budgets.choose(opened.folder, budget, "cosine", question).rounds
    graph = store.Project().graphs("tiny") / f"{rounds[0].skip.name}.fp32.onnx"
    assert store.check_passed(graph) and rounds[0].skip.mlp and not rounds[0].skip.attention
    late = latency_budget.TimeBudget("mlp", None, 2000.0, 20)
    with pytest.raises(UserError, match="the whole model already"):
        budgets.choose(opened.folder, late, "cosine", question)
