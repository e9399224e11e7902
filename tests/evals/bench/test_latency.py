"""Statistics of a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evals.bench import contestants, stopwatch
from pipeline.evals.bench.latency import Setting, latency, saved_percent
from pipeline.evals.bench.memory import Resident
from pipeline.store.records import Latency
from tests.timing import graph


def rows_of(model: Path, base: list[float], variant: list[float]) -> list[Latency]:
    """Rows from samples of base and block1-2, at 100 tokens."""
    paths = [graph(model, "base"), graph(model, "block1-2")]
    everyone = contestants.line_up(paths, threads=1, decode=False)
    samples = [stopwatch.Samples(seconds, [True] * len(seconds)) for seconds in (base, variant)]
    setting = Setting(100, decode=False, batch=1)
    return [
        latency(one, own, samples[0], setting, Resident(300.0, 100.0))
        for one, own in zip(everyone, samples, strict=True)
    ]


def test_improvement_share_and_total(model: Path) -> None:
    base, row = rows_of(model, [0.2] * 10, [0.1] * 9 + [0.3])
    assert base.total == pytest.approx(2.0) and row.total == pytest.approx(1.2)
    assert row.p50 == pytest.approx(100) and row.improvement == pytest.approx(50)
    assert row.p99 > row.p90 > row.p50
    assert row.ceiling is not None and 50 < row.ceiling < 67, "two of three layers, and the head stays"
    assert row.share == pytest.approx(50 / row.ceiling) and not row.above_ceiling
    assert (row.peak_mb, row.before_mb) == (300.0, 100.0)
    assert row.weight_mb < base.weight_mb and row.cache_bytes_per_token * 3 == base.cache_bytes_per_token


def test_a_speedup_above_its_ceiling_is_pointed_out_unless_it_is_noise(model: Path) -> None:
    assert rows_of(model, [1.0] * 10, [0.1] * 10)[1].above_ceiling
    noisy = [0.02, 0.02, 0.02, 0.5, 0.5]
    assert not rows_of(model, [1.0, 1.0, 0.1, 0.1, 1.0], noisy)[1].above_ceiling


def test_an_unknown_config_has_no_ceiling(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = graph(model, "block1-2")
    contestant = contestants.of_artefact(path, 1, decode=False)
    (path.parent / "config.json").write_text('{"model_type": "gpt2", "n_embd": 64}')
    samples = stopwatch.Samples([0.1] * 5, [True] * 5)
    row = latency(contestant, samples, samples, Setting(10, decode=True, batch=1), None)
    assert (row.ceiling, row.share, row.above_ceiling, row.weight_mb, row.peak_mb) == (
        None,
        None,
        False,
        None,
        None,
    )
    assert "config.json of 'gpt2'" in caplog.text


def test_saved_percent() -> None:
    assert (saved_percent(1), saved_percent(2), saved_percent(4)) == (0, 50, 75)
