"""`make gpu`, rehearsed for real on the CPU, and run where there is a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime import tensorrt_library
from runs.gpu import __main__ as command
from runs.gpu import machine
from runs.gpu.stages import Conductor
from tests import commands, needs

VARIANTS = ["attn6-7", "attn5-7", "mlp6-7", "mlp5-7"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "70b"], "no shape '70b'"),
        (["--provider", "rocm"], "PROVIDER is cuda or cpu, not 'rocm'"),
        (["--sequences", "0"], "--sequences, --minutes and --seconds must be above 0"),
        (["--minutes", "-1"], "must be above 0"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(tensorrt_library.gpu_target() is not None, reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {machine.NO_GPU}\n"


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cpu", pytest.param("cuda", marks=needs.cuda())])
def test_everything_on_a_tiny_model(
    provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if provider == "cpu":
        _in_this_process(monkeypatch)
    code = command.main(["--shape", "tiny", "--provider", provider, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "proof.json").read_text())
    failed = [one for one in record["stages"] if one["status"] == "failed"]
    assert (code, record["passed"], failed) == (0, True, []), printed
    assert printed.splitlines()[-1] == str(tmp_path / "proof.md")
    graphs = [one for one in record["checks"] if one["runtime"] == "onnxruntime"]
    assert [one["variant"] for one in graphs] == ["base", *VARIANTS] and all(one["passed"] for one in graphs)
    times = {(one["variant"], one["length"], one["is_decode"]): one for one in record["times"]}
    for name in ("base", *VARIANTS):
        for place in ((50, False), (100, False), (100, True)):
            row = times[name, *place]
            assert row["is_checked"] and row["ms"] > 0 and row["torch_ms"] > 0 and row["engine_ms"] > 0
    assert [one["tokens"] for one in record["texts"]][:3] == [128] * 3
    assert all(one["ms"] > 0 for one in record["texts"])
    skipped = {one["name"]: one["reason"] for one in record["stages"] if one["status"] == "skipped"}
    if provider == "cpu":
        assert all("engine" in name or "not installed" in skipped[name] for name in skipped), skipped
        assert "check engine base" in skipped
    built = [(one["variant"], one["runtime"].rpartition(", ")[2]) for one in record["engines"]]
    if built:
        assert built[-2:] == [("base", "int4"), ("attn5-7", "int4")] and len(built) == 8
        assert all(one["plan_mb"] > 0 and one["seconds"] > 0 for one in record["engines"])
    page = (tmp_path / "proof.md").read_text()
    assert page.startswith("# a tiny Llama of random weights on ") and "**passed**" in page


def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the pipeline's commands here, but the first: two dozen processes would import PyTorch for minutes.

    How stages are run as processes is the matter of test_stages.
    """
    monkeypatch.delenv("PIPELINE_PROVIDER", raising=False)
    as_process = Conductor._code

    def code(self: Conductor, command: list[str], limit: float, out: Any, err: Any) -> int | None:
        _, _, module, *arguments = command
        if module != "pipeline.cli" or "predict" not in self.outcomes:
            return as_process(self, command, limit, out, err)
        done = commands.ended(self.folder, *arguments)
        out.write(done.stdout)
        err.write(done.stderr)
        return done.returncode

    monkeypatch.setattr(Conductor, "_code", code)
