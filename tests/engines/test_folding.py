from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pipeline.engines import folding, opening
from pipeline.graphs import export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.runtime.runner import Array
from pipeline.types import Precision, SkipSet
from tests import tiny


def base(workdir: Path, model_type: str, precision: Precision, dtype: str) -> Path:
    folder = tiny.checkpoint(workdir / "source" / f"{model_type}-{dtype}", model_type, dtype)
    return export.export_base(checkpoint.resolve(str(folder)), precision)


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Optimizers that each session is opened without, on a machine where every model is large."""
    opened, calls = ort.InferenceSession, list[list[str]]()

    def session(*args: Any, **options: Any) -> ort.InferenceSession:
        calls.append(options["disabled_optimizers"])
        return opened(*args, **options)

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(folding, "LARGE", 0)
    return calls


def outputs(path: Path) -> dict[str, Array]:
    with opening.open_runner(path) as runner:
        rng = np.random.default_rng(0)
        feeds = runner.feeds(rng.integers(3, 96, (2, 9)))
        return runner.infer(feeds)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_numbers_are_the_same_bit_by_bit(
    workdir: Path,
    left_out: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    precision: Precision,
) -> None:
    graph = base(workdir, model_type, precision, precision)
    without = outputs(graph)
    monkeypatch.setattr(folding, "LARGE", 1e9)
    for name, array in outputs(graph).items():
        np.testing.assert_array_equal(without[name], array)
    # Gemma adds one to the weights of its norms, on weights alone: that is folded.
    expected = [] if model_type.startswith("gemma") else ["ConstantFolding"]
    assert left_out == [expected, []]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "bf16"), ("fp16", "bf16"), ("fp16", "fp32")])
def test_what_is_cast_is_folded(
    workdir: Path, left_out: list[list[str]], precision: Precision, dtype: str
) -> None:
    outputs(variants.cut(base(workdir, "llama", precision, dtype), SkipSet.parse("attn1")))
    assert left_out == [[]]


def test_small_models_are_opened_as_ever(workdir: Path) -> None:
    assert folding.folds(graphfile.load(base(workdir, "llama", "fp32", "fp32")))


def test_a_transpose_that_no_product_takes_is_folded(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LARGE", 0)
    model = graphfile.load(base(workdir, "llama", "fp32", "fp32"))
    assert not folding.folds(model)
    turned = next(node for node in model.graph if node.op_type == "Transpose" and node.inputs[0].const_value)
    reader = ir.node("Identity", [turned.outputs[0]])
    reader.outputs[0].name = "turned"
    model.graph.append(reader)
    model.graph.outputs.append(reader.outputs[0])
    assert folding.folds(model)
