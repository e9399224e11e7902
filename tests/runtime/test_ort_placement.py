"""Where nodes run, of a real session on the CPU; and what CUDA's attention is asked to tell."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.runtime import ort_placement
from pipeline.runtime.onnxruntime import PROVIDERS, OnnxRunner, open_session
from tests import tiny


def test_nodes_of_a_real_session(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))), "fp32")
    with OnnxRunner(path, open_session(path, path.parent)) as runner:
        nodes = ort_placement.nodes_on(runner.session, PROVIDERS["cpu"])
        layers = sum(name.endswith(".key") for name in runner.inputs)
        assert nodes["Attention"] == layers and nodes["MatMul"] >= 7 * layers
        assert ort_placement.HEAVY & set(nodes) >= {"Attention", "MatMul", "RMSNormalization"}
        assert ort_placement.nodes_on(runner.session, PROVIDERS["cuda"]) == {}
        assert runner.on_host is None  # it is where it belongs
        runner.device = "cuda"
        assert runner.on_host == nodes


def test_the_most_frequent_comes_first() -> None:
    def part(name: str, *operators: str) -> SimpleNamespace:
        return SimpleNamespace(
            ep_name=name, get_nodes=lambda: [SimpleNamespace(op_type=one) for one in operators]
        )

    parts = [part("A", "Gather"), part("B", "MatMul"), part("A", "Shape", "Shape")]
    session: Any = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    assert list(ort_placement.nodes_on(session, "A").items()) == [("Shape", 2), ("Gather", 1)]


def test_only_cuda_is_asked_and_not_for_longer_than_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(ort, "set_default_logger_severity", levels.append)
    with ort_placement.telling_attention("cpu"):
        assert levels == []
    with contextlib.suppress(ValueError), ort_placement.telling_attention("cuda"):
        assert levels == [0]
        raise ValueError
    assert levels == [0, 2]
