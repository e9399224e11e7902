"""What is measured and refused, and what is written; no test asserts a real time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.bench import bench, gpu_watch, memory, stopwatch
from pipeline.evals.bench.bench import BenchSettings
from pipeline.graphs import merge, variants
from pipeline.models import costs
from pipeline.models.config import read_config
from pipeline.models.costs import Workload
from pipeline.runtime import device_memory, onnxruntime, tensorrt_library
from pipeline.store.records import BenchRecord, GpuState, read
from pipeline.types import BASE, SkipSet, UserError
from tests import quantised, tiny
from tests.timing import FakeClock, graph

QUICK = {"sequences": 1, "lengths": (4,), "threads": 1, "unchecked": True}


def measured(paths: list[Path], graphs: dict[Path, Path] | None = None, **changes: Any) -> bench.BenchReport:
    """A measurement that takes as little time as it can."""
    return bench.bench(paths, BenchSettings(**{**QUICK, **changes}), optimum_graphs=graphs)


@pytest.fixture(autouse=True)
def memory_of_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for its memory, which test_memory.py does."""
    monkeypatch.setattr(memory, "resident", lambda *_: memory.Resident(300.0, 100.0))


class Ticking(FakeClock):
    """A clock that goes on by a second whenever it is read."""

    def wall(self) -> float:
        self.now += 1.0
        return self.now


def test_nothing_is_measured_that_has_passed_no_check(model: Path) -> None:
    variant = graph(model, "mlp2")
    tiny.passed(variant)
    with pytest.raises(UserError, match=r"base\.fp32\.onnx has passed no check; run `pipeline check /.*base"):
        measured([variant], unchecked=False)
    assert not store.result_of(variant, "bench").exists()
    tiny.passed(graph(model, "base"))
    assert measured([variant], unchecked=False).conditions.checked is True
    variant.write_bytes(variant.read_bytes() + b"\0")
    for unchecked in (False, True):
        with pytest.raises(UserError, match="not what its sidecar describes"):
            measured([variant], unchecked=unchecked)


def test_what_is_written(model: Path) -> None:
    cut = [graph(model, "block1-2"), graph(model, "mlp2")]
    report = measured(cut, sequences=3, lengths=(4, 6))
    assert [(row.name, row.length) for row in report.rows] == [
        (name, length) for length in (4, 6) for name in ("base.fp32", "block1-2.fp32", "mlp2.fp32")
    ]
    assert report.results == tuple(store.result_of(path, "bench") for path in [graph(model, "base"), *cut])
    record = read(BenchRecord, report.results[1])
    assert record.sha256 == store.sha256(cut[0]) and record.variant == "block1-2"
    assert [row.length for row in record.rows] == [4, 6] and {row.name for row in record.rows} == {
        "block1-2.fp32"
    }
    assert record.conditions == report.conditions
    for row in record.rows:
        assert 0 < row.p50 <= row.p90 <= row.p99 and row.total > 0
        assert row.clean <= 3 and (row.peak_mb, row.before_mb) == (300.0, 100.0)
        assert row.share == pytest.approx(row.improvement / (row.byte_ceiling or row.ceiling))
        assert row.interval[0] <= row.improvement <= row.interval[1]
    base = report.rows[0]
    assert base.improvement == 0 and base.ceiling == 0 and base.share is None and not base.above_ceiling


def test_how_it_was_measured_is_written(model: Path) -> None:
    how = measured([graph(model, "mlp2")], sequences=3).conditions
    assert how.checked is False and how.threads == 1 and how.sequences == 3 and how.decode is False
    assert "onnxruntime-gpu" in how.versions and how.device and how.tokens.startswith("English")
    assert (how.foreign_load == "recognised") == (how.allowance is not None)
    other = bench.bench([graph(model, "mlp2")], BenchSettings(**QUICK), clock=Ticking(has_idle=False))
    assert other.conditions.foreign_load == "not measured on this system"
    assert other.conditions.allowance is None


def test_threads_are_one_a_processor_by_default(model: Path) -> None:
    settings = BenchSettings(**{**QUICK, "threads": 0})
    assert bench.bench([graph(model, "base")], settings, clock=Ticking()).conditions.threads == 2


def test_paths_in_the_result_are_relative_to_it(
    model: Path, workdir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workdir / graph(model, "mlp2")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    report = measured([path])
    assert report.results[1] == workdir / "evals/results/m/mlp2.fp32.bench.json" and not list(
        elsewhere.iterdir()
    )
    record = read(BenchRecord, report.results[1])
    assert record.artefact == record.rows[0].artefact == "../../../graphs/m/mlp2.fp32.onnx"
    assert [row.artefact for row in report.rows] == [str(path.with_name("base.fp32.onnx")), str(path)]


def test_a_probe_leaves_no_result(model: Path) -> None:
    assert measured([graph(model, "mlp2")], write=False).results == ()
    assert not store.result_of(graph(model, "mlp2"), "bench").exists()


@pytest.mark.parametrize("variant", ["attn0", "block1-2"])
def test_decode_beside_torch_also_without_the_first_attention(model: Path, variant: str) -> None:
    """PyTorch's logits are compared with the graph's, on a cache whose layer 0 may be gone."""
    path = graph(model, variant)
    report = measured([path], sequences=2, lengths=(5,), batch=2, decode=True, compare=("torch",))
    assert [row.name for row in report.rows] == [
        "base.fp32",
        f"{variant}.fp32",
        "base.fp32 (torch)",
        f"{variant}.fp32 (torch)",
    ]
    how = report.conditions
    assert max(how.agreement["5"].values()) < 1e-3 and how.ceiling_of == "bytes read"
    assert "use_cache=True" in how.how[f"{variant}.fp32 (torch)"]
    assert store.result_of(path, "bench.decode").is_file() and not store.result_of(path, "bench").exists()


def test_quantised_weights_are_measured_against_both_bases(workdir: Path) -> None:
    """Against their own as all are, and against that with the checkpoint's own weights if it is timed too."""
    cut = quantised.graph(workdir, precision="int4-fp32", skip="mlp1")
    plain = cut.with_name("base.fp32.onnx")
    alone = measured([cut], lengths=(5,), decode=True)
    assert [row.over_plain for row in alone.rows] == [None, None]
    report = measured([cut, Path.cwd() / plain], lengths=(5,), decode=True, sequences=2)
    own, variant, whole = report.rows
    assert (own.name, variant.name, whole.name) == ("base.int4-b32-fp32", "mlp1.int4-b32-fp32", "base.fp32")
    assert own.improvement == 0 and whole.over_plain is None
    for row in (own, variant):
        assert row.over_plain is not None and row.over_plain.base == "base.fp32"
        assert row.over_plain.improvement == pytest.approx(
            100 * (1 - row.p50 / whole.p50), rel=1e-3, abs=1e-6
        )
        assert row.over_plain.interval[0] <= row.over_plain.improvement <= row.over_plain.interval[1]
    config, work, skip = read_config(cut.parent), Workload(5, decode=True), SkipSet((), (1,))
    bytes_read = [
        costs.streamed_bytes(config, part, form, work)
        for part, form in ((BASE, "fp32"), (BASE, "int4-b32-fp32"), (skip, "int4-b32-fp32"))
    ]
    assert [row.over_plain and row.over_plain.ceiling for row in (own, variant)] == pytest.approx(
        [100 * (1 - part / bytes_read[0]) for part in bytes_read[1:]]
    )
    written = read(BenchRecord, store.result_of(cut, "bench.decode")).rows
    assert written[0].over_plain == variant.over_plain
    prefill = measured([cut, plain])
    assert all(row.over_plain and row.over_plain.ceiling is None for row in prefill.rows[:2])


def test_a_comparison_that_computes_something_else_is_refused(model: Path) -> None:
    graphs = {graph(model, "mlp2"): graph(model, "block1-2")}
    with pytest.raises(UserError, match="give other logits"):
        measured([graph(model, "mlp2")], graphs, compare=("optimum",))


def test_optimums_graph_of_the_same_variant_stands_beside_it(model: Path) -> None:
    variant = graph(model, "mlp2")
    report = measured([variant], {variant: variants.cut_all_logits(variant)}, compare=("optimum",))
    row = report.rows[-1]
    assert row.name == "mlp2.fp32 (optimum)" and row.kind == "optimum"
    assert row.share is None and row.peak_mb is None
    rows = json.loads(store.result_of(variant, "bench").read_text())["rows"]
    assert [one["name"] for one in rows] == ["mlp2.fp32", "mlp2.fp32 (optimum)"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequences": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"lengths": ()}, "at least 1"),
        ({"lengths": (50, 0)}, "at least 1"),
        ({"threads": -1}, "not negative"),
        ({"threads": 10**10}, "at most 10,000"),
        ({"sequences": 10**20}, "at most 10\\^9"),
        ({"lengths": (50, 10**20)}, "at most 10\\^9"),
        ({"compare": ("jax",)}, "not jax"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        BenchSettings(**options)


def test_wrong_artefacts(model: Path, workdir: Path) -> None:
    merged = merge.merge([graph(model, "base"), graph(model, "mlp2")])
    with pytest.raises(UserError, match="merged graph"):
        measured([merged])
    graph(model, "base").rename(workdir / "away")
    with pytest.raises(UserError, match=r"base\.fp32\.onnx is missing.*pipeline export"):
        measured([graph(model, "mlp2")])


def test_what_does_not_fit_into_memory_is_not_started(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 1.0)
    monkeypatch.setattr(memory, "resident", lambda *_: memory.Resident(500.0, 100.0))
    with pytest.raises(UserError, match="2 artefacts at once need 800 MB, and 1 MB are free"):
        measured([graph(model, "mlp2")])


def test_a_model_without_a_tokenizer_gets_random_ids_and_says_so(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert measured([graph(model, "mlp2")]).conditions.tokens.startswith("random ids")


# ---- on a GPU -------------------------------------------------------------------------------------------


class Seen(gpu_watch.Watch):
    """A watch that reads a GPU at its full clock."""

    def __init__(self) -> None:
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1

    def readings(self) -> list[GpuState]:
        return [GpuState(sm_mhz=1980.0, watts=300.0)] * 3


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """A GPU that is the CPU in truth, and the watches of it; process 7 uses it from the third look on."""
    watches: list[Seen] = []
    looks = iter([(), (), ("7 python",), ("7 python",)])
    opened = onnxruntime.open_session

    @contextmanager
    def watching() -> Iterator[Seen]:
        watches.append(Seen())
        yield watches[-1]

    def on_the_cpu(model: Path | bytes, folder: Path, threads: int, provider: str, **_: bool):
        return opened(model, folder)

    monkeypatch.setattr(onnxruntime, "open_session", on_the_cpu)
    monkeypatch.setattr(tensorrt_library, "gpu_name", lambda: "NVIDIA X")
    monkeypatch.setattr(gpu_watch, "state", lambda: GpuState(busy=1.0))
    monkeypatch.setattr(gpu_watch, "others", lambda: next(looks))
    monkeypatch.setattr(gpu_watch, "watching", watching)
    told = memory.Resident(300.0, 100.0, 900.0, {4: "Flash Attention"}, {"Shape": 2})
    monkeypatch.setattr(memory, "resident", lambda *_: told)
    return watches


def test_what_a_gpu_did_is_written(model: Path, gpu: list[Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    warm: list[tuple[int, float, int]] = []
    monkeypatch.setattr(
        stopwatch, "warm_up", lambda runs, seconds, _: warm.append((len(runs), seconds, gpu[-1].begun))
    )
    settings = BenchSettings(**{**QUICK, "sequences": 2, "lengths": (4, 6), "provider": "cuda"})
    clock = Ticking(has_idle=False)
    report = bench.bench([graph(model, "mlp2")], settings, clock=clock)
    how = report.conditions
    assert how.device == "NVIDIA X" and how.warm_up == bench.WARM_UP and "waits for all" in how.timing
    assert [watch.begun for watch in gpu] == [1, 1] and clock.slept >= 4 * gpu_watch.REST
    assert warm == [(2, bench.WARM_UP, 0)] * 2  # watched, and not yet measured
    assert list(how.gpu) == ["4", "6"] and how.gpu["4"].sm_mhz == (1980.0, 1980.0, 1980.0)
    assert how.gpu["4"].problems == () and how.gpu["6"].problems == ("other processes use it: 7 python",)
    assert [(row.length, row.enough_clean) for row in report.rows] == [
        (4, True),
        (4, True),
        (6, False),
        (6, False),
    ]
    assert [row.attention for row in report.rows] == ["Flash Attention"] * 2 + [None] * 2
    assert {(row.device_mb, row.on_host["Shape"]) for row in report.rows if row.on_host} == {(900.0, 2)}
    record = read(BenchRecord, report.results[1])
    assert record.conditions.gpu == how.gpu and record.rows[0].on_host == {"Shape": 2}


def test_on_the_cpu_no_gpu_is_looked_at(model: Path, gpu: list[Seen]) -> None:
    how = measured([graph(model, "mlp2")]).conditions
    assert (how.gpu, how.warm_up, gpu) == ({}, 0.0, []) and how.timing.startswith("wall time")


def test_more_than_the_bound_is_not_started(
    model: Path, gpu: list[Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each artefact would fit alone, and both beside PyTorch do not."""
    path = graph(model, "mlp2")
    size = opening.weight_bytes(path.with_name("base.fp32.onnx"))
    monkeypatch.setenv(device_memory.VARIABLE, str(3 * size / device_memory.GB))
    monkeypatch.setattr(memory, "resident", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(UserError, match=r"^the weights of 2 artefacts need .* and --device-memory gives"):
        measured([path], provider="cuda", compare=("torch",))
