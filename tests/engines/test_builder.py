from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines import build, builder
from pipeline.engines.settings import BuildSettings
from pipeline.types import UserError
from tests import needs
from tests.tiny_engines import graph, leftovers, spoil


@needs.rtx
def test_memory_is_read_from_the_log() -> None:
    one = builder.Builder("tensorrt-rtx")
    one.lines += [
        "INFO Total Activation Memory: 1024 bytes",
        "INFO Total Weights Memory: 77 bytes",
        "INFO Total Activation Memory: 2048 bytes",
    ]
    assert one.memory() == builder.EngineMemory(activations=(1024, 2048), weights=(77,))
    assert {"sm75", "sm80", "sm120"} <= set(one.targets())
    assert one.targets() == sorted(one.targets(), key=lambda name: int(name[2:]))


@needs.rtx
def test_the_first_error_is_the_cause_and_a_missing_driver_none() -> None:
    one = builder.Builder("tensorrt-rtx")
    assert one.first_error() == "no reason given"
    one.lines += ["ERROR catchCudaError: no driver", "WARNING w", "ERROR the\ncause", "ERROR later"]
    assert one.first_error() == "ERROR the cause"


@needs.rtx
def test_parser_error_is_one_line_with_the_log_at_hand(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = graph()
    spoil(source, "Sigmoid", lambda node: setattr(node, "op_type", "Bernoulli"))  # TensorRT has none
    with pytest.raises(UserError) as caught:
        build.build(source)
    message = str(caught.value)
    log = Path("engines/tiny/base/tensorrt-rtx-sm80-fp16.log")
    assert (
        "\n" not in message
        and "node '/layers.0/mlp/" in message
        and "(Bernoulli)" in message
        and str(log) in message
    )
    assert "Bernoulli" in log.read_text() and leftovers() == []
    assert capfd.readouterr() == ("", "")


@needs.rtx
def test_builder_error_is_one_line_with_the_log_at_hand(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        builder.Builder, "_decompose_attention", lambda self: None
    )  # then FP32 attention has no kernel
    with pytest.raises(UserError) as caught:
        build.build(graph(precision="fp32"), BuildSettings(keep_precision=True))
    message = str(caught.value)
    log = Path("engines/tiny/base/tensorrt-rtx-sm80-fp32.log")
    assert "\n" not in message and "cannot build this network: ERROR" in message and str(log) in message
    assert "not supported by a dedicated kernel" in log.read_text() and leftovers() == []
    assert capfd.readouterr() == ("", "")
