"""Counting and statistics under a clock of the test's own; no test asserts a real time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.evals.bench import stopwatch
from tests.timing import FakeClock


def test_every_contestant_runs_every_sequence_once_where_nothing_disturbs() -> None:
    clock, seen = FakeClock(), []

    def run(name: str, seconds: float):
        def one(k: int) -> None:
            seen.append((k, name))
            clock.spend(seconds)

        return one

    ticks = []
    a, b = stopwatch.interleave([run("a", 0.1), run("b", 0.2)], 20, lambda: ticks.append(1), clock=clock)
    assert a.seconds == pytest.approx([0.1] * 20) and b.seconds == pytest.approx([0.2] * 20)
    assert a.clean == [True] * 20 and a.disturbed == a.kept_disturbed == 0 and a.enough
    assert sorted(seen) == sorted((k, n) for k in range(20) for n in "ab") and [k for k, _ in seen] == sorted(
        k for k, _ in seen
    )
    orders = {tuple(n for _, n in seen[i : i + 2]) for i in range(0, 40, 2)}
    assert orders == {("a", "b"), ("b", "a")}, "the order is shuffled in each round"
    assert len(ticks) == 20 and clock.slept == 0


def test_a_disturbed_sample_is_taken_again_and_the_clean_one_counts() -> None:
    clock, calls = FakeClock(), []

    def run(k: int) -> None:
        calls.append(k)
        disturbed = calls.count(k) == 1 and k == 3
        clock.spend(0.3 if disturbed else 0.1, others=0.2 if disturbed else 0.0)

    (samples,) = stopwatch.interleave([run], 6, clock=clock)
    assert samples.seconds == pytest.approx([0.1] * 6) and samples.clean == [True] * 6
    assert samples.disturbed == 1 and calls.count(3) == 2 and clock.slept == pytest.approx(stopwatch.PAUSE)


def test_a_machine_that_is_never_quiet_ends_keeps_the_least_disturbed_and_says_so() -> None:
    clock, calls = FakeClock(), []

    def run(k: int) -> None:
        calls.append(k)
        clock.spend(0.2, others=0.2 / calls.count(k))  # less each time, yet never little

    (samples,) = stopwatch.interleave([run], 8, clock=clock)
    assert len(calls) == 16, "as many repeats as samples, and no more"
    assert calls.count(0) == 1 + stopwatch.REPEATS
    assert len(samples.seconds) == 8 and samples.kept_disturbed == 8 and samples.disturbed == 16
    assert not samples.enough and samples.trusted == samples.seconds


@pytest.mark.parametrize(
    ("others", "clean"), [(0.0, True), (0.011, True), (0.0119, True), (0.013, False), (0.1, False)]
)
def test_what_is_allowed_to_others(others: float, clean: bool) -> None:
    """max(12 ms, 6 % of two processors' time): 12 ms of a 100 ms sample, 24 ms of a 200 ms one."""
    clock = FakeClock()
    (samples,) = stopwatch.interleave([lambda k: clock.spend(0.1, others)], 1, clock=clock)
    assert samples.clean == [clean]
    assert stopwatch.allowance(0.01, 2) == stopwatch.TICK and stopwatch.allowance(0.2, 2) == pytest.approx(
        0.024
    )


def test_where_the_system_does_not_tell_nothing_is_disturbed() -> None:
    clock = FakeClock(has_idle=False)
    (samples,) = stopwatch.interleave([lambda k: clock.spend(0.1, 0.1)], 3, clock=clock)
    assert samples.clean == [True] * 3 and samples.disturbed == 0


def test_the_results_rest_on_clean_samples_where_there_are_enough() -> None:
    samples = stopwatch.Samples([1.0] * 5 + [9.0] * 15, [True] * 5 + [False] * 15, 60)
    assert samples.enough and samples.trusted == [1.0] * 5
    fewer = stopwatch.Samples([1.0] * 4 + [9.0] * 16, [True] * 4 + [False] * 16, 64)
    assert not fewer.enough and len(fewer.trusted) == 20


def test_a_pause_before_each_sample_where_it_is_asked_for() -> None:
    clock = FakeClock()
    stopwatch.interleave([lambda k: clock.spend(0.1)], 4, settle=0.25, clock=clock)
    assert clock.slept == 1.0


def test_the_system_clock_reads_its_own_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 700 50 0\ncpu0 9 9 9 300 20 0\ncpu1 9 9 9 400 30 0\nintr 5\n")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert stopwatch.SystemClock(stat).idle() == 7.5
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1}, raising=False)
    assert stopwatch.SystemClock(stat).idle() == 4.3
    assert stopwatch.SystemClock(tmp_path / "none").idle() is None


def test_speedup_and_its_interval() -> None:
    rng = np.random.default_rng(1)
    slow, fast = (stopwatch.Samples(list(m + rng.normal(0, 0.01, 200)), [True] * 200) for m in (1.5, 1.0))
    ratio, low, high = stopwatch.speedup(slow, fast)
    assert ratio == pytest.approx(1.5, abs=0.01) and low < ratio < high and high - low < 0.02
    assert stopwatch.speedup(slow, fast) == (ratio, low, high)
    few = (stopwatch.Samples(s.seconds[:6], [True] * 6) for s in (slow, fast))
    _, low_few, high_few = stopwatch.speedup(*few)
    assert high_few - low_few > high - low


def test_one_sample_has_no_interval() -> None:
    one, other = (stopwatch.Samples([seconds], [True]) for seconds in (3.0, 2.0))
    assert stopwatch.speedup(one, other) == (1.5, 1.5, 1.5)


def test_the_interval_is_the_bootstraps() -> None:
    """Beside a bootstrap written out: ratios of the medians of samples drawn with replacement."""
    rng = np.random.default_rng(3)
    base, other = (m + rng.gamma(2, 0.02, 60) for m in (1.5, 1.0))
    _, low, high = stopwatch.speedup(*(stopwatch.Samples(list(s), [True] * 60) for s in (base, other)))
    draw = np.random.default_rng(0)
    medians = [np.median(draw.choice(s, (stopwatch.RESAMPLES, 60)), axis=1) for s in (base, other)]
    assert (low, high) == pytest.approx(np.quantile(medians[0] / medians[1], [0.025, 0.975]))


def test_the_machines_own_clock_goes_on() -> None:
    clock = stopwatch.SystemClock()
    wall, own, idle = clock.wall(), clock.own(), clock.idle()
    clock.sleep(0.02)
    assert clock.wall() - wall >= 0.02 and clock.own() >= own
    assert (idle is None) == (clock.idle() is None) and clock.processors >= 1


def test_a_warm_up_goes_on_for_its_time_in_whole_rounds() -> None:
    clock, order = FakeClock(), list[str]()

    def run_of(name: str) -> stopwatch.Run:
        def run(k: int) -> None:
            assert k == 0
            order.append(name)
            clock.spend(0.3)

        return run

    stopwatch.warm_up([run_of("a"), run_of("b")], 1.0, clock)
    assert order == ["a", "b"] * 2
