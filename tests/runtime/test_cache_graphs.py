"""The bytes are ONNX: onnx reads them, its checker passes them, and its reference evaluator runs them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from pipeline.runtime import cache_graphs

DTYPES = [np.dtype(np.float32), np.dtype(np.float16)]
MANY = [np.dtype(np.float16)] * 70
"""Names and messages of more than 127 bytes: lengths that take two bytes and more."""


@pytest.mark.parametrize("write", [cache_graphs.cutting, cache_graphs.joining])
@pytest.mark.parametrize("dtypes", [DTYPES, MANY])
def test_they_are_onnx(write: object, dtypes: list[np.dtype[np.generic]]) -> None:
    data = write(dtypes)  # type: ignore[operator]
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == [f"y{i}" for i in range(len(dtypes))]
    assert [
        onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.output
    ] == dtypes
    assert model.SerializeToString(deterministic=True) and len(data) == model.ByteSize()


def test_what_they_compute() -> None:
    rng = np.random.default_rng(0)
    a, b = (
        {f"{side}{i}": rng.normal(size=(rows, 2, tokens, 3)).astype(d) for i, d in enumerate(DTYPES)}
        for side, rows, tokens in (("a", 3, 5), ("b", 1, 4))
    )
    joining = ReferenceEvaluator(onnx.load_model_from_string(cache_graphs.joining(DTYPES)))
    pads = {"pads_a": np.zeros(8, np.int64), "pads_b": np.array([0, 0, 1, 0, 0, 0, 0, 0])}
    for i, y in enumerate(joining.run(None, {**pads, **a, **b})):
        padded = np.concatenate([np.zeros((1, 2, 1, 3), DTYPES[i]), b[f"b{i}"]], axis=2)
        np.testing.assert_array_equal(y, np.concatenate([a[f"a{i}"], padded]))
    cutting = ReferenceEvaluator(onnx.load_model_from_string(cache_graphs.cutting(DTYPES)))
    numbers = {"rows": np.array([2, 0]), "starts": np.array([0, 0, 1]), "ends": np.array([99, 99, 4])}
    for i, y in enumerate(cutting.run(None, {**numbers, **{f"x{i}": a[f"a{i}"] for i in range(2)}})):
        np.testing.assert_array_equal(y, a[f"a{i}"][[2, 0], :, 1:4])
