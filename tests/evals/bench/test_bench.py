"""Counting and statistics under a clock of ours; gating, JSON and decoding on a tiny model. No test asserts a real time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline import store
from pipeline.evals.bench import bench, contestants, stopwatch
from pipeline.evals.bench.latency import Latency, Report
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, texts
from pipeline.types import SkipSet, UserError
from tests import tiny
from tests.models.test_texts import character_tokenizer


class FakeClock:
    """Time passes only where a run says so; other work holds one of two processors for `others` seconds meanwhile."""

    processors = 2

    def __init__(self, told: bool = True) -> None:
        self.now = self.cpu = self.resting = self.slept = 0.0
        self.told = told

    def wall(self) -> float:
        return self.now

    def own(self) -> float:
        return self.cpu

    def idle(self) -> float | None:
        return self.resting if self.told else None

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def spend(self, seconds: float, others: float = 0.0) -> None:
        self.now += seconds
        self.cpu += seconds
        self.resting += max(0.0, seconds - others)


# ---- the stopwatch --------------------------------------------------------------------------------------------------


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

    (found,) = stopwatch.interleave([run], 6, clock=clock)
    assert found.seconds == pytest.approx([0.1] * 6) and found.clean == [True] * 6
    assert found.disturbed == 1 and calls.count(3) == 2 and clock.slept == pytest.approx(stopwatch.PAUSE)


def test_a_machine_that_is_never_quiet_ends_keeps_the_least_disturbed_and_says_so() -> None:
    clock, calls = FakeClock(), []

    def run(k: int) -> None:
        calls.append(k)
        clock.spend(0.2, others=0.2 / calls.count(k))  # less each time, yet never little

    (found,) = stopwatch.interleave([run], 8, clock=clock)
    assert len(calls) == 16, "as many repeats as samples, and no more"
    assert calls.count(0) == 1 + stopwatch.REPEATS
    assert len(found.seconds) == 8 and found.kept_disturbed == 8 and found.disturbed == 16
    assert not found.enough and found.trusted == found.seconds


@pytest.mark.parametrize(
    ("others", "clean"), [(0.0, True), (0.011, True), (0.0119, True), (0.013, False), (0.1, False)]
)
def test_what_is_allowed_to_others(others: float, clean: bool) -> None:
    """max(12 ms, 6 % of two processors' time): 12 ms of a 100 ms sample, 24 ms of a 200 ms one."""
    clock = FakeClock()
    (found,) = stopwatch.interleave([lambda k: clock.spend(0.1, others)], 1, clock=clock)
    assert found.clean == [clean]
    assert stopwatch.allowance(0.01, 2) == stopwatch.TICK and stopwatch.allowance(0.2, 2) == pytest.approx(
        0.024
    )


def test_where_the_system_does_not_tell_nothing_is_disturbed() -> None:
    clock = FakeClock(told=False)
    (found,) = stopwatch.interleave([lambda k: clock.spend(0.1, 0.1)], 3, clock=clock)
    assert found.clean == [True] * 3 and stopwatch.busy_seconds(clock) is None


def test_the_results_rest_on_clean_samples_where_there_are_enough() -> None:
    found = stopwatch.Samples([1.0] * 5 + [9.0] * 15, [True] * 5 + [False] * 15, 60)
    assert found.enough and found.trusted == [1.0] * 5
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


# ---- the stage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(workdir: Path) -> Path:
    """graphs/m with a tokenizer, its base graph and three variants, none of them checked."""
    folder = character_tokenizer(tiny.checkpoint(workdir / "graphs" / "m", num_hidden_layers=3))
    base = export.export_base(checkpoint.open_checkpoint(folder))
    for name in ("attn0", "block1-2", "mlp2"):
        variants.cut(base, SkipSet.parse(name))
    return folder


def graph(model: Path, variant: str) -> Path:
    return model / f"{variant}.fp32.onnx"


def pass_check(path: Path) -> None:
    store.write_json(store.result_path("m", path, "check"), {"passed": True, "sha256": store.sha256(path)})


def test_nothing_is_measured_that_has_passed_no_check(model: Path) -> None:
    variant = graph(model, "mlp2")
    pass_check(variant)
    with pytest.raises(UserError, match=r"base\.fp32\.onnx has passed no check"):
        bench.bench([variant], sequences=1, lengths=(4,), threads=1)
    assert not store.result_path("m", variant, "bench").exists()
    pass_check(graph(model, "base"))
    assert bench.bench([variant], sequences=1, lengths=(4,), threads=1).conditions["checked"] is True
    variant.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match="not what its sidecar describes"):
        bench.bench([variant], sequences=1, lengths=(4,), threads=1)


def test_what_is_written(model: Path) -> None:
    variants = [graph(model, "block1-2"), graph(model, "mlp2")]
    report = bench.bench(variants, sequences=3, lengths=(4, 6), threads=1, unchecked=True)
    assert [(row.name, row.length) for row in report.rows] == [
        (name, length) for length in (4, 6) for name in ("base.fp32", "block1-2.fp32", "mlp2.fp32")
    ]
    record = json.loads(store.result_path("m", variants[0], "bench").read_text())
    assert (
        record["sha256"] == store.sha256(variants[0])
        and record["variant"] == "block1-2"
        and record["what"] == "bench"
    )
    assert [row["length"] for row in record["rows"]] == [4, 6] and {
        row["name"] for row in record["rows"]
    } == {"block1-2.fp32"}
    how = record["conditions"]
    assert (
        how["checked"] is False
        and how["threads"] == 1
        and how["sequences"] == 3
        and "onnxruntime-gpu" in how["versions"]
    )
    assert how["device"] and how["foreign_load"] and how["tokens"].startswith("English")
    for row in record["rows"]:
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] and row["total"] > 0
        assert row["clean"] <= 3 and row["peak_mb"] > row["before_mb"] > 0
        assert row["share"] == pytest.approx(row["improvement"] / row["ceiling"])
        assert row["interval"][0] <= row["improvement"] <= row["interval"][1]
    base = report.rows[0]
    assert base.improvement == 0 and base.ceiling == 0 and base.share is None and not base.above_ceiling
    assert report.results == [
        str(store.result_path("m", path, "bench")) for path in [graph(model, "base"), *variants]
    ]


@pytest.mark.parametrize("variant", ["attn0", "block1-2"])
def test_decode_beside_torch_also_without_the_first_attention(model: Path, variant: str) -> None:
    """The comparison itself holds PyTorch to the graph's logits, on a cache whose layer 0 may be gone."""
    report = bench.bench(
        [graph(model, variant)],
        sequences=2,
        lengths=(5,),
        batch=2,
        decode=True,
        compare=("torch",),
        threads=1,
        unchecked=True,
    )
    assert [row.name for row in report.rows] == [
        "base.fp32", f"{variant}.fp32", "base.fp32 (torch)", f"{variant}.fp32 (torch)"
    ]  # fmt: skip
    assert max(report.conditions["agreement"]["5"].values()) < 1e-3
    assert (
        report.conditions["ceiling_of"] == "bytes read"
        and "use_cache=True" in report.conditions["how"][f"{variant}.fp32 (torch)"]
    )
    assert store.result_path("m", graph(model, variant), "bench.decode").is_file()
    assert not store.result_path("m", graph(model, variant), "bench").exists()


def test_decode_times_the_token_that_follows_the_cache(model: Path) -> None:
    """Its logits are those of the whole prefill's last token."""
    tokens, _ = texts.sequences(graph(model, "base").parent, 6, 2)
    whole = contestants.of_artefact(graph(model, "attn0"), 1, decode=False)(tokens[:, None])(0)
    step = contestants.of_artefact(graph(model, "attn0"), 1, decode=True)(tokens[:, None])(0)
    np.testing.assert_allclose(step, whole, atol=1e-4)


def test_another_model_under_a_variants_name_is_found_out(model: Path) -> None:
    """A comparison that computes something else is no comparison."""
    with pytest.raises(UserError, match="give other logits"):
        bench.bench(
            [graph(model, "mlp2")], sequences=1, lengths=(4,), threads=1, unchecked=True, compare=("optimum",),
            optimum_graphs={graph(model, "mlp2"): graph(model, "block1-2")},
        )  # fmt: skip


def test_the_foreign_graph_of_the_same_variant_stands_beside_it(model: Path) -> None:
    variant = graph(model, "mlp2")
    report = bench.bench(
        [variant], sequences=1, lengths=(4,), threads=1, unchecked=True, compare=("optimum",),
        optimum_graphs={variant: variants.cut_all_logits(variant)},
    )  # fmt: skip
    row = report.rows[-1]
    assert (
        row.name == "mlp2.fp32 (optimum)"
        and row.kind == "optimum"
        and row.share is None
        and row.peak_mb is None
    )
    rows = json.loads(store.result_path("m", variant, "bench").read_text())["rows"]
    assert [r["name"] for r in rows] == ["mlp2.fp32", "mlp2.fp32 (optimum)"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequences": 0}, "at least 1"),
        ({"lengths": ()}, "at least 1"),
        ({"lengths": (50, 0)}, "at least 1"),
        ({"threads": -1}, "not negative"),
        ({"compare": ("jax",)}, "not jax"),
    ],
)
def test_wrong_options(model: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        bench.bench([graph(model, "mlp2")], **{"sequences": 1, "lengths": (4,), "unchecked": True, **options})


def test_wrong_artefacts(model: Path, workdir: Path) -> None:
    merged = model / "merged.fp32.onnx"
    merged.write_bytes(graph(model, "base").read_bytes())
    store.write_sidecar(merged, {"artefact": "merged", "model": "m"})
    with pytest.raises(UserError, match="merged graph"):
        bench.bench([merged], unchecked=True)
    graph(model, "base").rename(workdir / "away")
    with pytest.raises(UserError, match=r"base\.fp32\.onnx is missing.*pipeline export"):
        bench.bench([graph(model, "mlp2")], unchecked=True)


def test_what_does_not_fit_into_memory_is_not_started(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "free_memory", lambda: 1.0)
    monkeypatch.setattr(contestants, "peak_memory", lambda *_: (500.0, 100.0))
    with pytest.raises(UserError, match="2 artefacts at once need 800 MB, and 1 MB are free"):
        bench.bench([graph(model, "mlp2")], sequences=1, lengths=(4,), unchecked=True)


def test_a_model_without_a_tokenizer_gets_random_ids_and_says_so(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    report = bench.bench([graph(model, "mlp2")], sequences=1, lengths=(4,), threads=1, unchecked=True)
    assert report.conditions["tokens"].startswith("random ids")


# ---- statistics of a row, and the table -----------------------------------------------------------------------------


def rows_for(model: Path, base: list[float], variant: list[float]) -> list[Latency]:
    """Rows from given samples of base and block1-2, at 100 tokens."""
    taking_part = bench._contestants([graph(model, "base"), graph(model, "block1-2")], (), {}, 1, False)
    samples = [stopwatch.Samples(seconds, [True] * len(seconds)) for seconds in (base, variant)]
    return bench._rows(taking_part, samples, 100, False, 1, {})


def test_improvement_share_and_total(model: Path) -> None:
    base, row = rows_for(model, [0.2] * 10, [0.1] * 9 + [0.3])
    assert base.total == pytest.approx(2.0) and row.total == pytest.approx(1.2)
    assert row.p50 == pytest.approx(100) and row.improvement == pytest.approx(50)
    assert row.p99 > row.p90 > row.p50
    assert row.ceiling is not None and 50 < row.ceiling < 67, "two of three layers, and the head stays"
    assert row.share == pytest.approx(50 / row.ceiling) and not row.above_ceiling


def test_a_speedup_above_its_ceiling_is_pointed_out_unless_it_is_noise(model: Path) -> None:
    assert rows_for(model, [1.0] * 10, [0.1] * 10)[1].above_ceiling
    noisy = [0.02, 0.02, 0.02, 0.5, 0.5]
    assert not rows_for(model, [1.0, 1.0, 0.1, 0.1, 1.0], noisy)[1].above_ceiling


def test_the_table_says_what_a_reader_must_know(model: Path) -> None:
    rows = rows_for(model, [1.0] * 10, [0.1] * 10)
    how = {
        "measure": "prefill",
        "sequences": 10,
        "batch": 1,
        "threads": 1,
        "device": "a CPU",
        "ceiling_of": "FLOPs",
    }
    report = Report(rows, {**how, "checked": False, "foreign_load": "not measured on this system"}, [])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(bench.table(report))
    words = console.export_text()
    for expected in (
        "block1-2.fp32",
        "1.00",
        "100.0",
        "a bug in the measurement",
        "unchecked",
        "not measured",
    ):
        assert expected in words
    assert report.record()["rows"][1]["above_ceiling"] is True
