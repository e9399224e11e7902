from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pipeline.graphs import export, graphfile
from pipeline.models import checkpoint
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.types import UserError
from tests import tiny

IDS = np.arange(5, 12)[None]


@pytest.fixture
def path(workdir: Path) -> Path:
    return export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))), "fp16")


def test_a_graph_in_memory_reads_its_weights_from_the_folder(path: Path) -> None:
    data = ir.to_proto(graphfile.load(path)).SerializeToString()
    logits = []
    for model in (path, data):
        with OnnxRunner(path, open_session(model, path.parent, threads=1)) as runner:
            logits.append(runner.forward(IDS)[0])
    np.testing.assert_array_equal(*logits)


def test_inputs_and_outputs_have_their_types_and_shapes(path: Path) -> None:
    with OnnxRunner(path, open_session(path, path.parent)) as runner:
        assert runner.inputs["input_ids"].dtype == np.int64
        assert runner.inputs["past_key_values.1.key"].shape == ("batch", 2, "past", 32)
        assert runner.outputs["logits"].dtype == np.float16
        outputs = runner.infer(runner.feeds(IDS), ["present.0.key", "logits"])
        assert list(outputs) == ["present.0.key", "logits"]
        assert set(runner.infer(runner.feeds(IDS))) == set(runner.outputs)


def test_a_graph_that_onnx_runtime_refuses_is_one_line(path: Path) -> None:
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"ONNX Runtime refuses .*base.fp16.onnx: ") as caught:
        open_session(path, path.parent)
    assert "\n" not in str(caught.value)


def test_a_missing_provider_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match=r"no cuda provider; `pipeline doctor`"):
        open_session(path, path.parent, provider="cuda")
