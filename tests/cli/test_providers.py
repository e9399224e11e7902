"""--provider: what computes, where its results lie, and what is said where there is no CUDA."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from transformers import PreTrainedModel, TrainingArguments

from pipeline import store
from pipeline.calib import training
from pipeline.cli import listing, timing
from pipeline.engines import taps
from pipeline.evals.bench import memory
from pipeline.models import devices
from pipeline.runtime import device_memory, onnxruntime, tensorrt_library
from pipeline.store import records
from pipeline.store.records import BenchRecord, CheckRecord, ScoreRecord, SublayerTimes, TimesRecord
from pipeline.types import UserError
from tests import tiny
from tests.commands import run

GPU = "NVIDIA X"
PROMPT = "the time"
BENCH = ("--sequences", "2", "--lengths", "4", "--threads", "1")


@dataclass
class Asked:
    """What was asked for a device, in order: sessions of ONNX Runtime, models of PyTorch, fresh processes."""

    sessions: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """CUDA that is the CPU in truth: all that is asked for runs, and is written down."""
    asked, opened = Asked(), onnxruntime.open_session

    def open_session(
        model: Any, folder: Path, threads: int = 0, provider: str = "cpu", **options: bool
    ) -> ort.InferenceSession:
        asked.sessions.append(provider)
        return opened(model, folder, threads, **options)

    def place(self: Any, device: str) -> Any:
        asked.models.append(device)
        return self

    def resident(*arguments: Any) -> memory.Resident:
        asked.processes.append(arguments[-1])
        return memory.Resident(300.0, 100.0)

    for module in (onnxruntime, taps):
        monkeypatch.setattr(module, "open_session", open_session)
    for module in (onnxruntime, devices):
        monkeypatch.setattr(module, "refusal", lambda _: None)
    monkeypatch.setattr(devices, "free_bytes", lambda _: 0)
    for number, call in enumerate(("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")):
        monkeypatch.setattr(torch.cuda, call, lambda number=number: number * memory.MB)
    monkeypatch.setattr(PreTrainedModel, "to", place)
    monkeypatch.setattr(memory, "resident", resident)
    monkeypatch.setattr(tensorrt_library, "gpu_name", lambda: GPU)
    return asked


def results(folder: str = "evals/results/m") -> list[str]:
    """The names of the result files."""
    return sorted(path.name for path in Path(folder).glob("*.json"))


def test_the_cpu_is_the_default(model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "check", model / "base.fp32.onnx")
    assert set(cuda.sessions) == {"cpu"} and not cuda.models
    assert results() == ["base.fp32.check.json", "base.fp32.check.run.json"]
    record = records.read(CheckRecord, Path("evals/results/m/base.fp32.check.json"))
    assert (record.provider, record.torch_device) == (None, "cpu") and record.device != GPU


def test_a_check_on_cuda_speaks_for_cuda_alone(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment variable reaches the session and the reference."""
    graph = model / "base.fp32.onnx"
    monkeypatch.setenv("PIPELINE_PROVIDER", "cuda")
    run(capsys, "check", graph, "--localize")
    assert set(cuda.sessions) == {"cuda"} and len(cuda.sessions) == 2  # one of them shows the stream
    assert cuda.models == ["cuda"] * 2
    assert results() == ["base.fp32.check.cuda.json", "base.fp32.check.cuda.run.json"]
    record = records.read(CheckRecord, Path("evals/results/m/base.fp32.check.cuda.json"))
    assert (record.device, record.provider, record.torch_device) == (GPU, "cuda", "cuda")
    assert store.check_passed(graph, provider="cuda") and not store.check_passed(graph)
    assert store.check_passed(graph, provider=None)
    assert run(capsys, "check", graph).startswith("passed (already checked)")
    (again,) = json.loads(run(capsys, "check", graph, "--provider", "cpu", "--json"))
    assert not again["already_checked"] and cuda.sessions[-1] == "cpu"
    assert cuda.models == ["cuda"] * 2


def test_a_graph_that_passed_on_cuda_alone_is_listed_as_passed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = model / "base.fp32.onnx"
    tiny.passed(graph)
    store.result_of(graph, "check").rename(store.result_of(graph, "check", "cuda"))
    assert [listing.check_state(path) for path in (graph, model / "mlp1.fp32.onnx")] == [
        "passed",
        "not passed yet",
    ]


CALIBRATE = ("calibrate", "m", "--samples", "2", "--length", "8")


def test_calibrate_on_cuda_is_another_measurement(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    def runner(*options: object) -> str:
        return str(json.loads(run(capsys, *CALIBRATE, *options, "--json"))["runner"])

    assert runner("--provider", "cuda") == "torch on cuda" and cuda.models == ["cuda"]
    assert runner("--provider", "cuda") == "torch on cuda" and cuda.models == ["cuda"]  # it is there
    assert runner() == "torch" and not cuda.sessions
    assert runner("--runner", model / "base.fp32.onnx", "--provider", "cuda").endswith(
        "base.fp32.onnx on cuda"
    )
    assert cuda.sessions == ["cuda"] and cuda.models == ["cuda"]


def test_calibrate_without_cuda_writes_nothing(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, options in ((devices, ()), (onnxruntime, ("--runner", model / "base.fp32.onnx"))):
        monkeypatch.setattr(module, "refusal", lambda _, module=module: f"none in {module.__name__}")
        with pytest.raises(UserError, match=f"none in {module.__name__}"):
            run(capsys, *CALIBRATE, *options, "--provider", "cuda")
    assert not Path("calib").exists()


def test_calibrate_in_another_precision(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(run(capsys, *CALIBRATE, "--precision", "bf16", "--json"))
    assert record["runner"] == "torch bf16"
    with pytest.raises(UserError, match="--precision is fp32, fp16 or bf16, not 'fp8'"):
        run(capsys, *CALIBRATE, "--precision", "fp8")


FITTED = ("--samples", "10", "--length", "32")


@pytest.mark.parametrize(
    ("rule", "options", "files"),
    [
        ("greedy", ("--samples", "2", "--length", "8"), ("greedy-mlp.json",)),
        ("residual", FITTED, ("moments/mlp0.json", "moments/mlp0.safetensors")),
        ("greedy-linear", FITTED, ("greedy-linear-mlp.json", "moments/mlp1.json")),
    ],
)
def test_what_a_rule_measures_on_cuda_is_not_taken_for_the_cpus(
    rule: str,
    options: tuple[str, ...],
    files: tuple[str, ...],
    model: Path,
    cuda: Asked,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ("select", "m", "--kind", "mlp", "--count", "1", "--select", rule, *options, "--json")
    first = json.loads(run(capsys, *line, "--provider", "cuda"))
    on_cuda = [store.measured_on(Path("calib/m") / name, "cuda") for name in files]
    assert first["device"] == "cuda" and cuda.models == ["cuda"] and not cuda.sessions
    assert all(file.is_file() for file in on_cuda) and not any(
        Path("calib/m", name).exists() for name in files
    )
    for file in on_cuda:
        if file.suffix == ".json":
            assert json.loads(file.read_text())["device"] == "cuda"
    kept = [file.read_bytes() for file in on_cuda]
    again = json.loads(run(capsys, *line))
    assert (again["device"], again["skip"]) == ("cpu", first["skip"]) and cuda.models == ["cuda"]
    assert all(Path("calib/m", name).is_file() for name in files)
    assert json.loads(run(capsys, *line, "--provider", "cuda")) == first  # nothing is measured again
    assert [file.read_bytes() for file in on_cuda] == kept and len(cuda.models) <= 1


def test_a_rule_that_runs_no_model_asks_for_no_device(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_PROVIDER", "cuda")
    monkeypatch.setattr(devices, "refusal", lambda _: "none here")
    choice = json.loads(run(capsys, "select", "m", "--kind", "mlp", "--count", "1", "--json"))
    assert (choice["select"], choice["device"]) == ("last", "cpu")
    with pytest.raises(UserError, match="none here"):
        run(capsys, "select", "m", "--kind", "mlp", "--count", "1", "--select", "greedy")
    assert not Path("calib").exists()


def test_a_time_is_kept_on_the_provider_that_is_named(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sublayers are timed there, and their times lie beside the CPU's; so does the finalist's measurement."""
    times = timing.sublayer_times(model / "base.fp32.onnx", 8, "cuda")
    assert set(cuda.sessions) == {"cuda"} and not results()
    record = records.read(TimesRecord, Path("calib/m/times-fp32-8.cuda.json"))
    assert (record.device, record.seconds) == (GPU, times) and not Path("calib/m/times-fp32-8.json").exists()
    run(capsys, *CALIBRATE)
    known = SublayerTimes(whole=1.0, attn=0.1, mlp=0.2)
    monkeypatch.setattr(timing, "sublayer_times", lambda *_: known)
    line = ("select", "m", "--kind", "mlp", "--speedup", "1.1", "--length", "8", "--json")
    choice = json.loads(run(capsys, *line, "--provider", "cuda"))
    assert choice["provider"] == "cuda" and set(cuda.sessions) == {"cuda"} == set(cuda.models)
    assert choice["skip"].startswith("mlp")
    for kind in ("check", "bench"):
        assert f"{choice['skip']}.fp32.{kind}.cuda.json" in results()


def test_a_compensation_on_cuda_is_another_one(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fitted and timed there; its sums and losses lie beside the CPU's, which are measured anew."""
    graph, options = model / "mlp1.fp32.onnx", ("--with", "fold", *FITTED, "--json")
    (answer,) = json.loads(run(capsys, "compensate", graph, *options, "--provider", "cuda"))
    assert answer["device"] == "cuda" and cuda.models == ["cuda"] and set(cuda.sessions) == {"cuda"}
    assert answer["milliseconds"].keys() == {"base", "none", "compensated"}
    names = ("moments/mlp1.json", "compensation/losses.json")
    for name in names:
        on_cuda = store.measured_on(Path("calib/m", name), "cuda")
        assert json.loads(on_cuda.read_text())["device"] == "cuda" and not Path("calib/m", name).exists()
    (again,) = json.loads(run(capsys, "compensate", graph, *options, "--no-time"))
    assert again["device"] == "cpu" and again["losses"] == answer["losses"]
    assert all(Path("calib/m", name).is_file() for name in names) and cuda.models == ["cuda"]
    assert set(cuda.sessions) == {"cuda"}


def test_auto_chooses_and_times_on_cuda(model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("compensate", model / "mlp1.fp32.onnx", "--with", "auto", "--budget-ms", "1e6", *FITTED)
    run(capsys, *line, "--no-time", "--provider", "cuda")
    assert cuda.models == ["cuda"] and set(cuda.sessions) == {"cuda"}
    file = Path("calib/m/compensation/mlp1.auto.cuda.json")
    assert json.loads(file.read_text())["timed_on"].endswith(f"on {GPU}")


HEAL = ("--steps", "1", "--batch", "1", "--length", "16", "--rank", "2", "--json")


def test_healing_on_cuda_is_another_adapter(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu: list[bool] = []

    def arguments(*, use_cpu: bool, **options: Any) -> TrainingArguments:
        on_cpu.append(use_cpu)
        return TrainingArguments(use_cpu=True, **options)

    monkeypatch.setattr(training, "TrainingArguments", arguments)
    line = ("heal", model / "mlp1.fp32.onnx", *HEAL)
    for provider in ("cuda", "cuda", "cpu"):  # the second time it is there
        (answer,) = json.loads(run(capsys, *line, "--provider", provider))
        assert answer["device"] == provider
    assert on_cpu == [False, True] and cuda.models[0] == "cuda"
    (answer,) = json.loads(run(capsys, *line, "--precision", "bf16"))
    assert answer["settings"]["precision"] == "bf16" and on_cpu == [False, True, True]


def test_generate_on_cuda(model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "generate", model / "base.fp32.onnx", PROMPT, "--max-tokens", "1", "--provider", "cuda")
    assert cuda.sessions == ["cuda"]


def test_bench_on_cuda_checks_there_and_keeps_its_rows_apart(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = model / "mlp1.fp32.onnx"
    words = run(capsys, "bench", graph, *BENCH, "--provider", "cuda", "--compare", "torch")
    assert GPU in words and set(cuda.sessions) == set(cuda.models) == {"cuda"}
    assert cuda.processes == ["cuda"] * 2
    kinds = ("bench.cuda.json", "check.cuda.json", "check.cuda.run.json")
    assert results() == [f"{name}.fp32.{kind}" for name in ("base", "mlp1") for kind in kinds]
    record = records.read(BenchRecord, Path("evals/results/m/mlp1.fp32.bench.cuda.json"))
    assert (record.conditions.device, record.conditions.provider) == (GPU, "cuda")
    assert {row.kind for row in record.rows} == {"artefact", "torch"}
    assert [(row.device_mb, row.attention) for row in record.rows] == [
        (None, None),
        (1.0, "eager: matmul, softmax, matmul"),
    ]
    run(capsys, "bench", graph, *BENCH, "--unchecked")
    record = records.read(BenchRecord, Path("evals/results/m/mlp1.fp32.bench.json"))
    assert record.conditions.device != GPU and record.conditions.provider is None
    assert cuda.processes[2:] == ["cpu"] * 2


def test_a_score_on_cuda_has_answers_and_a_result_of_its_own(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = model / "base.fp32.onnx"
    tiny.passed(graph)
    command = ("score", graph, "--tasks", "smoke-loss", "--limit", "2", "--json")
    with pytest.raises(UserError, match=r"no check on cuda; run `pipeline check .* --provider cuda`, or"):
        run(capsys, *command, "--provider", "cuda")
    on_cuda, on_cpu = (
        json.loads(run(capsys, *command, "--unchecked", "--provider", provider))[0]
        for provider in ("cuda", "cpu")
    )
    assert cuda.sessions == ["cuda", "cpu"]  # nothing was answered from what the other kept
    assert (on_cuda["provider"], on_cuda["checked"], on_cpu["checked"]) == ("cuda", False, True)
    from pipeline.evals.score import results as scores

    for provider, name in (("cuda", "limit2.cuda"), ("cpu", "limit2")):
        (score,) = scores.scores_of(graph, provider)
        file = Path(f"evals/results/m/base.fp32.score.smoke-loss.{name}.json")
        assert records.read(ScoreRecord, file).pipeline.value == score.value
        assert (records.read(ScoreRecord, file).config.device == GPU) == (provider == "cuda")


TORCH = {
    "heal": (),
    "compensate": ("--no-time",),
}


@pytest.mark.parametrize("command", TORCH)
def test_without_cuda_in_pytorch_nothing_is_fitted_or_trained(
    command: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "refusal", lambda provider: "none here" if provider == "cuda" else None)
    line = (command, model / "mlp1.fp32.onnx", *TORCH[command])
    for options in (("--provider", "cuda"), ()):
        monkeypatch.setenv("PIPELINE_PROVIDER", "" if options else "cuda")
        with pytest.raises(UserError, match="none here"):
            run(capsys, *line, *options)
    with pytest.raises(UserError, match="--provider is cpu, cuda or auto, not 'gpu'"):
        run(capsys, *line, "--provider", "gpu")
    assert not Path("calib").exists() and not list(model.glob("*~*"))


COMMANDS = {
    "compensate": (),
    "check": (),
    "bench": BENCH,
    "score": ("--tasks", "smoke-loss", "--limit", "1", "--unchecked"),
    "generate": (PROMPT,),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_cuda_nothing_is_run_or_written(
    command: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the cuda provider needs an NVIDIA GPU and its driver, and none is seen here"
    monkeypatch.setattr(onnxruntime, "refusal", lambda provider: None if provider == "cpu" else reason)
    line = (command, model / "base.fp32.onnx", *COMMANDS[command])
    for options in (("--provider", "cuda"), ()):
        monkeypatch.setenv("PIPELINE_PROVIDER", "" if options else "cuda")
        with pytest.raises(UserError, match=reason):
            run(capsys, *line, *options)
    with pytest.raises(UserError, match="--provider is cpu, cuda or auto, not 'gpu'"):
        run(capsys, *line, "--provider", "gpu")
    assert not Path("evals/results").exists()


def test_a_pytorch_without_cuda_is_said_before_the_check(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        devices, "refusal", lambda provider: "PyTorch has none" if provider == "cuda" else None
    )
    graph = model / "base.fp32.onnx"
    for command in (("check", graph), ("bench", graph, *BENCH, "--compare", "torch")):
        with pytest.raises(UserError, match="PyTorch has none"):
            run(capsys, *command, "--provider", "cuda")
    assert not cuda.sessions and not Path("evals/results").exists()
    run(capsys, "check", graph, "--provider", "auto")
    assert cuda.sessions == ["cuda"] and not cuda.models
    record = records.read(CheckRecord, Path("evals/results/m/base.fp32.check.cuda.json"))
    assert (record.provider, record.torch_device) == ("cuda", "cpu")


# ---- the bound ------------------------------------------------------------------------------------------


def commands(model: Path) -> list[list[object]]:
    """One of each that loads a model."""
    graph = model / "base.fp32.onnx"
    return [
        ["check", graph],
        [*CALIBRATE],
        [*CALIBRATE, "--runner", graph],
        ["bench", graph, *BENCH, "--unchecked"],
        ["score", graph, "--tasks", "smoke", "--limit", "1", "--unchecked"],
        ["compensate", model / "mlp1.fp32.onnx", "--with", "bias", "--samples", "32", "--length", "8"],
        ["generate", graph, PROMPT, "--max-tokens", "1"],
        ["select", "m", "--count", "1", "--select", "greedy", "--samples", "2", "--length", "8"],
    ]


def test_a_model_that_does_not_fit_is_refused_by_every_command(
    model: Path, cuda: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda _: None)
    for command in commands(model):
        monkeypatch.setenv(device_memory.VARIABLE, "")
        with pytest.raises(
            UserError, match=r"^the weights of .* need .* GB of the GPU's memory, and --device"
        ):
            run(capsys, *command, "--provider", "cuda", "--device-memory", "0.0001")
    assert not cuda.sessions and not cuda.models and not cuda.processes


def test_the_bound_is_refused_on_the_cpu(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line; in the environment it waits for a command that runs on CUDA."""
    for command in commands(model):
        monkeypatch.setenv(device_memory.VARIABLE, "")
        with pytest.raises(UserError, match="bounds a GPU's memory, and this runs on the CPU"):
            run(capsys, *command, "--device-memory", "0.0001")
    monkeypatch.setenv(device_memory.VARIABLE, "0.0001")
    run(capsys, *commands(model)[0])
    with pytest.raises(UserError, match=r"is a number of GB above 0, not '-1\.0'"):
        run(capsys, *commands(model)[0], "--device-memory", "-1")
