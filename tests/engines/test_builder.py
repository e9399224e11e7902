from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import store
from pipeline.engines import build, builder, layout, opening
from pipeline.engines.settings import BuildSettings
from pipeline.graphs import graphfile
from pipeline.types import UserError
from tests import fake_gpu, fake_tensorrt, needs
from tests.fake_tensorrt import Machine
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


@needs.rtx
def test_a_target_that_is_refused_is_one_line(project: Path) -> None:
    """As TensorRT-RTX refuses its own ComputeCapability.NONE: it answers False, and goes on."""
    one = builder.Builder("tensorrt-rtx")
    one.parse(graph(), False)
    with pytest.raises(UserError, match="tensorrt-rtx refuses the target none: ERROR") as caught:
        one.build([], ["none"], False, None, project / "a.plan")
    assert "\n" not in str(caught.value)


@needs.rtx
def test_weights_from_memory_come_before_those_of_a_file(project: Path) -> None:
    """What the parser is given stands for a file that is not there; what it does not know is refused."""
    laid_out = layout.laid_out(graphfile.load(graph()))
    assert laid_out.stacks
    with layout.written(laid_out, project) as source:
        one = builder.Builder("tensorrt-rtx")
        one.parse(graph(), False, source)
        assert one.layers()["MATRIX_MULTIPLY"] == 9
        for weights in ({}, {"strange": np.zeros(4, np.uint8)}):
            with pytest.raises(UserError, match=r"tensorrt-rtx cannot parse .*base\.fp16\.onnx"):
                builder.Builder("tensorrt-rtx").parse(graph(), False, layout.Source(source.proto, weights))


@pytest.fixture
def machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a GPU and TensorRT, both of the tests."""
    return fake_tensorrt.install(monkeypatch, Machine())


def built(**settings: Any) -> Path:
    return build.build(graph(), BuildSettings(backend="tensorrt", **settings))


def test_tensorrt_builds_what_its_runner_then_runs(machine: Machine) -> None:
    """From graph to numbers: both profiles, strongly typed without TF32, the builder's figures."""
    plan = built(batch=(1, 2, 3), length=(1, 5, 9), past=(0, 7, 11))
    record = store.engine_sidecar(plan)
    assert plan.name == "tensorrt-sm90-fp16.plan" and record.backend_version == fake_tensorrt.__version__
    assert record.proven == "parsed and built on a GPU; not run"
    figures = record.build
    assert figures and figures.layers == {"ATTENTION_INPUT": 2, "ELEMENTWISE": 2}
    assert (figures.activation_bytes, figures.weights_bytes) == ((1024,), (4,))
    (one,) = machine.builds
    assert one["flags"] == set() and one["apart"] == []
    assert [{name: tuple(shapes) for name, shapes in each.items()} for each in one["profiles"]] == [
        dict(each) for each in record.profiles
    ]
    assert one["profiles"][0]["attention_mask"] == ((1, 1), (2, 5), (3, 20))  # P from 0: the optimum has none
    assert one["profiles"][1]["past_key_values.2.key"] == ((1, 2, 0, 3), (2, 2, 7, 3), (3, 2, 11, 3))
    assert "a line too many" not in plan.with_suffix(".log").read_text()
    with opening.open_runner(plan) as runner:
        feeds = runner.feeds(np.array([[3, 4, 5]]))
        expected = fake_gpu.toy(feeds, fake_tensorrt.weight_of(graph()))
        for name, array in runner.infer(feeds).items():
            np.testing.assert_array_equal(array, expected[name])
    assert machine.runs == [0]


def test_a_stripped_plan_is_filled_from_its_graph(machine: Machine) -> None:
    plan = built(strip_weights=True)
    assert machine.builds[0]["flags"] == {"STRIP_PLAN", "REFIT_IDENTICAL"}
    with opening.open_runner(plan) as runner:
        feeds = runner.feeds(np.array([[3, 4, 5]]))
        expected = fake_gpu.toy(feeds, fake_tensorrt.weight_of(graph()))["logits"]
        np.testing.assert_array_equal(runner.infer(feeds)["logits"], expected)


def test_timings_are_kept_and_those_of_another_version_or_of_nothing_are_not(machine: Machine) -> None:
    cache = Path("engines/tiny/timing.cache")
    ours = f"timings of {fake_tensorrt.__version__}".encode()
    for before in (None, ours, b"timings of 10.16", b"half a fi"):
        if before is not None:
            cache.write_bytes(before)
        built(force=True)
        assert machine.builds[-1]["known"] == (ours if before == ours else b"")
        assert cache.read_bytes() == ours


def test_attention_in_fp32_is_taken_apart(machine: Machine) -> None:
    build.build(graph(precision="fp32"), BuildSettings(backend="tensorrt", keep_precision=True))
    assert machine.builds[0]["apart"] == [0, 2]


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("Builder", "does not start on this machine, .*: ERROR the toy's Builder fails"),
        ("parse_from_file", r"cannot parse .*: node '/layers.0/x' \(Bernoulli\): types differ"),
        ("add_optimization_profile", "refuses the shapes .*: ERROR the toy's add_optimization_profile fails"),
        (
            "build_serialized_network_to_stream",
            "cannot build this network: ERROR the toy's build_serialized_network_to_stream fails",
        ),
    ],
)
def test_what_tensorrt_refuses_to_build_is_one_line(fails: str, why: str, machine: Machine) -> None:
    machine.fails = fails
    with pytest.raises(UserError, match=why) as caught:
        built()
    assert "\n" not in str(caught.value) and leftovers() == []
    assert Path("engines/tiny/base/tensorrt-sm90-fp16.log").is_file()
