"""Default models and artefacts, numbers, and the width of tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.table import Table

from pipeline.cli import arguments
from pipeline.models import devices
from pipeline.runtime import device_memory, onnxruntime
from pipeline.types import Devices, Provider, UserError


def test_numbers_and_triples() -> None:
    assert arguments.numbers("50,100", "--lengths") == [50, 100]
    assert arguments.triple("1,1,8", "--batch") == (1, 1, 8)
    with pytest.raises(UserError, match="--lengths '50,x' is not a list of whole numbers"):
        arguments.numbers("50,x", "--lengths")
    for text in ("1,2", "3,2,1", "1,2,3,4", "-1,2,3"):
        with pytest.raises(UserError, match="is not min,opt,max"):
            arguments.triple(text, "--batch")


def test_the_artefacts_that_are_named_are_taken_as_they_are(workdir: Path) -> None:
    assert arguments.artefacts([Path("any.onnx")], precision="fp16") == [Path("any.onnx")]


def test_with_none_named_every_graph_of_the_only_model_is_taken(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [Path(f"graphs/m/{name}.fp32.onnx") for name in ("base", "block1", "mlp1")]
    assert arguments.artefacts(None) == paths
    assert capsys.readouterr().err == f"model: m\ntaking: {', '.join(map(str, paths))}\n"
    with pytest.raises(UserError, match="m has no artefact to work on; make one with `pipeline export`"):
        arguments.artefacts(None, precision="fp16")


def test_a_model_is_named_or_said(workdir: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PIPELINE_MODEL", "org/some-model")
    assert arguments.model("other") == "other" and capsys.readouterr().err == ""
    assert arguments.model_folder(None) == "some-model"
    assert capsys.readouterr().err == "model: org/some-model\n"


def table(columns: int, text: str) -> Table:
    rows = Table()
    for column in range(columns):
        rows.add_column(f"column {column}", no_wrap=True)
    rows.add_row(*[text] * columns)
    return rows


def test_a_model_is_named_by_the_argument_or_the_option(workdir: Path, capsys) -> None:
    assert arguments.one_model("a/b", None) == arguments.one_model(None, "a/b") == "a/b"
    assert arguments.one_model("a/b", "a/b") == "a/b" and not capsys.readouterr().err
    assert arguments.one_model(None, None) == "demo" and capsys.readouterr().err == "model: demo\n"
    with pytest.raises(UserError, match="MODEL 'a/b' and --model 'c' are two models; name one"):
        arguments.one_model("a/b", "c")


def test_a_table_in_a_pipe_has_100_columns_unless_its_numbers_need_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = Table()
    words.add_column("a long heading " * 20)
    arguments.print_table(words)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 100
    arguments.print_table(table(12, "123456789012"))
    wide = capsys.readouterr().out
    assert wide.count("123456789012") == 12 and "…" not in wide


def test_torch_stays_out_of_a_light_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USE_TORCH", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    arguments.without_torch()
    import os

    assert "USE_TORCH" not in os.environ  # it is loaded already
    monkeypatch.setattr(sys, "modules", {n: m for n, m in sys.modules.items() if n != "transformers"})
    arguments.without_torch()
    assert os.environ.pop("USE_TORCH") == "0"


def test_auto_is_cuda_where_it_works_and_says_what_it_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacks: dict[object, str] = {}
    for module in (onnxruntime, devices):
        monkeypatch.setattr(module, "refusal", lambda _, module=module: lacks.get(module))
    assert arguments.provider("auto") == "cuda"
    assert arguments.devices("auto", must=False) == Devices("cuda", "cuda")
    assert capsys.readouterr().err == "graphs on CUDA\ngraphs on CUDA\nPyTorch on CUDA\n"
    lacks[devices] = "PyTorch is old"
    assert arguments.devices("auto", must=False) == Devices("cuda", "cpu")
    assert capsys.readouterr().err.endswith("PyTorch on the CPU: PyTorch is old\n")
    lacks[onnxruntime] = "no GPU is seen"
    assert arguments.devices("auto", must=False) == Devices("cpu", "cpu")
    assert capsys.readouterr().err == "graphs on the CPU: no GPU is seen\n"


def test_cuda_that_was_named_is_taken_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "refusal", lambda _: None)
    monkeypatch.setattr(devices, "refusal", lambda _: "PyTorch is old")
    assert arguments.provider("cuda") == "cuda" and arguments.devices("cpu", must=True) == Devices(
        "cpu", "cpu"
    )
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="PyTorch is old"):
        arguments.devices("cuda", must=True)
    assert arguments.devices("cuda", must=False) == Devices("cuda", "cpu")
    monkeypatch.setattr(onnxruntime, "refusal", lambda _: "no GPU is seen")
    with pytest.raises(UserError, match="no GPU is seen"):
        arguments.provider("cuda")


def test_the_bound_lies_in_the_environment_where_something_runs_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine runs on its GPU whatever the provider is."""
    places: list[tuple[list[Provider], list[Path]]] = [
        (["cuda"], []),
        (["cpu", "cuda"], []),
        (["cpu"], [Path("a.onnx"), Path("b.plan")]),
    ]
    for on, paths in places:
        monkeypatch.setenv(device_memory.VARIABLE, "")
        arguments.bound_device_memory(1.5, on, paths)
        assert device_memory.bound() == 1_500_000_000
        arguments.bound_device_memory(None, on, paths)
        assert device_memory.bound() == 1_500_000_000
    arguments.bound_device_memory(1.5, ["cpu"])  # it came from the environment
    with pytest.raises(UserError, match="and this runs on the CPU"):
        arguments.bound_device_memory(2.0, ["cpu"], [Path("a.onnx")])
    with pytest.raises(UserError, match="is a number of GB above 0"):
        arguments.bound_device_memory(0.0, ["cuda"])
