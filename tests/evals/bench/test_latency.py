"""Statistics of a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evals.bench import contestants, stopwatch
from pipeline.evals.bench.latency import latency, saved_percent
from pipeline.evals.bench.memory import Resident
from pipeline.graphs import variants
from pipeline.models.costs import Workload
from pipeline.store.records import Latency
from pipeline.types import SkipSet
from tests import overlays
from tests.timing import graph


def rows_of(model: Path, base: list[float], variant: list[float]) -> list[Latency]:
    """Rows from samples of base and block1-2, at 100 tokens."""
    paths = [graph(model, "base"), graph(model, "block1-2")]
    everyone = contestants.line_up(paths, threads=1, decode=False)
    samples = [stopwatch.Samples(seconds, [True] * len(seconds)) for seconds in (base, variant)]
    work = Workload(100)
    return [
        latency(one, own, samples[0], work, Resident(300.0, 100.0))
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
    row = latency(contestant, samples, samples, Workload(10, decode=True), None)
    assert (row.ceiling, row.share, row.above_ceiling, row.weight_mb, row.peak_mb) == (
        None,
        None,
        False,
        None,
        None,
    )
    assert "config.json of 'gpt2'" in caplog.text


@pytest.mark.parametrize("decode", [False, True])
def test_the_ceiling_counts_the_maps(decode: bool, model: Path) -> None:
    """Two of three MLPs of 3·64·96 weights gone; two matrices of 64 x 64 with a bias in their place."""
    skip = SkipSet((), (0, 2))
    overlay = overlays.of_form(model, skip, "linear")
    path = variants.compensate(model / "base.fp32.onnx", skip, overlay, "linear")
    contestant = contestants.of_artefact(path, 1, decode=decode)
    samples = stopwatch.Samples([0.1] * 5, [True] * 5)
    row = latency(contestant, samples, samples, Workload(10, decode), None)
    attention, mlp, head, norm = 64 * (128 + 2 * 64) + 128 * 64, 3 * 64 * 96, 96 * 64, 64
    matrix, scores = 64 * 64, 4 * 4 * 32
    if decode:
        cache = 10 * 3 * 2 * 2 * 32
        kept = 3 * (attention + norm) + norm + head + cache
        whole, part = kept + 3 * (mlp + norm), kept + (mlp + norm) + 2 * (matrix + 64)
    else:
        kept = 3 * (2 * attention * 10 + scores * 10 * 10) + 2 * head
        whole, part = kept + 3 * 2 * mlp * 10, kept + 2 * mlp * 10 + 2 * 2 * matrix * 10
    assert row.ceiling == pytest.approx(100 * (1 - part / whole))
    weights = 2 * head + 3 * (attention + norm) + (mlp + norm) + norm + 2 * (matrix + 64)
    assert row.weight_mb == pytest.approx(4 * weights / 1e6)


def short_rows(model: Path, saved: float, tokens: int = 2, decode: bool = False) -> list[Latency]:
    """Rows of base and block1-2, at so few tokens that bytes bind on any processor."""
    everyone = contestants.line_up([graph(model, "base"), graph(model, "block1-2")], threads=1, decode=decode)
    samples = [stopwatch.Samples([one] * 5, [True] * 5) for one in (1.0, 1 - saved)]
    return [
        latency(one, own, samples[0], Workload(tokens, decode), None)
        for one, own in zip(everyone, samples, strict=True)
    ]


def test_where_bytes_bind_a_prefill_their_ceiling_stands_beside(model: Path) -> None:
    """Of 3 layers 2 go: 24,576 + 18,432 weights, two norms of 64, and 2 cached tokens of 128 numbers."""
    base, row = short_rows(model, 0.5)
    layer, head = 24_576 + 18_432 + 2 * 64 + 2 * 128, 96 * 64 + 64
    assert row.byte_ceiling == pytest.approx(100 * (1 - (layer + head) / (3 * layer + head)))
    assert row.ceiling is not None and abs(row.byte_ceiling - row.ceiling) > 1
    assert row.share == pytest.approx(50 / row.byte_ceiling) and (base.byte_ceiling, base.share) == (0, None)
    assert short_rows(model, 0.5, tokens=400)[1].byte_ceiling is None
    assert short_rows(model, 0.5, decode=True)[1].byte_ceiling is None


def test_only_what_is_above_both_ceilings_is_pointed_out(model: Path) -> None:
    row = short_rows(model, 0.5)[1]
    assert row.ceiling is not None and row.byte_ceiling is not None
    low, high = sorted((row.ceiling, row.byte_ceiling))
    assert not short_rows(model, (low + high) / 200)[1].above_ceiling
    assert short_rows(model, high / 100 + 0.02)[1].above_ceiling


def test_saved_percent() -> None:
    assert (saved_percent(1), saved_percent(2), saved_percent(4)) == (0, 50, 75)
