"""Times that commands measure on the way: kept, and measured again only where what they are of is another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from pipeline import store
from pipeline.cli import timing
from pipeline.evals.bench import bench
from pipeline.store.records import BenchRecord, TimesRecord, read
from pipeline.types import UserError
from tests import tiny

pytestmark = pytest.mark.usefixtures("unweighed")


def fake_bench(calls: list[bench.BenchSettings], speedups: dict[str, float]):
    """A measurement that takes no time: a pass takes a second, and variants save what `speedups` says."""

    def run(paths: list[Path], settings: bench.BenchSettings) -> SimpleNamespace:
        calls.append(settings)
        base = paths[0].with_name("base.fp32.onnx")
        rows = [SimpleNamespace(artefact=str(base), p50=1000.0, improvement=0.0)]
        for path in paths:
            saved = 100 * (1 - 1 / speedups[path.name.split(".")[0]])
            rows.append(SimpleNamespace(artefact=str(path), p50=1.0, improvement=saved))
        return SimpleNamespace(rows=rows)

    return run


def test_sublayer_times_are_kept_in_the_projects_calib(
    model: Path, workdir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bench.BenchSettings] = []
    monkeypatch.setattr(bench, "bench", fake_bench(calls, {"attn1": 1.25, "mlp1": 2.0}))
    base = workdir / model / "base.fp32.onnx"
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    times = timing.sublayer_times(base, 20)
    assert (times.whole, times.attn, times.mlp) == pytest.approx((1.0, 0.2, 0.5))
    assert calls[0].unchecked and not calls[0].write and calls[0].lengths == (20,)
    file = workdir / "calib" / "m" / "times-fp32-20.json"
    assert read(TimesRecord, file).seconds == times and list(Path().iterdir()) == []
    assert timing.sublayer_times(base, 20) == times and len(calls) == 1
    store.write_json(file, {**store.read_json(file), "device": "another machine"})
    timing.sublayer_times(base, 20)
    assert len(calls) == 2


def test_latencies_of_one_run_are_measured_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several graphs count together only where one run timed them beside each other."""
    runs: list[list[str]] = []
    whole = bench.bench

    def counted(paths: list[Path], settings: bench.BenchSettings) -> object:
        runs.append([path.name for path in paths])
        return whole(paths, settings)

    monkeypatch.setattr(bench, "bench", counted)
    base, mlp, block = (model / f"{name}.fp32.onnx" for name in ("base", "mlp1", "block1"))
    for path in (base, mlp, block):
        tiny.passed(path)
    first = timing.latencies([mlp, block], 8)
    assert list(first) == [base, mlp, block] and runs == [["mlp1.fp32.onnx", "block1.fp32.onnx"]]
    kept = read(BenchRecord, store.result_of(block, "bench")).rows[0]
    assert first[block].p50 == kept.p50 and kept.length == 8
    assert timing.latencies([mlp, block], 8) == first and timing.latencies([block], 8)[block] == first[block]
    assert len(runs) == 1
    timing.latencies([mlp, block], 9)
    assert len(runs) == 2  # of another length
    timing.latencies([mlp], 9)
    assert len(runs) == 2
    whole([mlp], bench.BenchSettings(sequences=timing.PROBES, lengths=(9,)))
    timing.latencies([mlp, block], 9)
    assert len(runs) == 3  # the base's result is of a run without block1
    whole([mlp, block], bench.BenchSettings(sequences=2, lengths=(9,)))
    timing.latencies([mlp, block], 9)
    assert len(runs) == 4  # of too few sequences
    store.write_json(store.result_of(mlp, "bench"), {"what": "bench"})
    timing.latencies([mlp, block], 9)
    assert len(runs) == 5


def test_a_speed_up_is_of_the_variants_own_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another variant the base is timed anew: then both are, where both times are wanted."""
    base, mlp, block = (model / f"{name}.fp32.onnx" for name in ("base", "mlp1", "block1"))
    for path in (base, mlp, block):
        tiny.passed(path)
    first = timing.latencies([mlp], 8)
    speedup = first[base].p50 / first[mlp].p50
    timing.latencies([block], 8)
    with monkeypatch.context() as patch:
        patch.setattr(bench, "bench", Mock(side_effect=UserError("measured again")))
        assert timing.speedup(mlp, 8) == timing.over_base(first[mlp]) == pytest.approx(speedup, rel=1e-3)
        with pytest.raises(UserError, match="measured again"):
            timing.latencies([mlp], 8)
    assert list(timing.latencies([mlp], 8)) == [base, mlp]


def test_a_latency_on_another_machine_does_not_count(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.evals import machine

    mlp = model / "mlp1.fp32.onnx"
    for path in (model / "base.fp32.onnx", mlp):
        tiny.passed(path)
    timing.latencies([mlp], 8)
    monkeypatch.setattr(bench, "bench", Mock(side_effect=UserError("measured again")))
    timing.latencies([mlp], 8)
    monkeypatch.setattr(machine, "device", lambda *_: "another machine")
    with pytest.raises(UserError, match="measured again"):
        timing.latencies([mlp], 8)
