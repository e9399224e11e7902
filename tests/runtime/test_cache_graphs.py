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


@pytest.mark.parametrize("form", ["rows", "tokens", "pad", "join"])
@pytest.mark.parametrize("dtypes", [DTYPES, MANY])
def test_they_are_onnx(form: str, dtypes: list[np.dtype[np.generic]]) -> None:
    data = cache_graphs.graph(form, dtypes)
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    types = [value.type.tensor_type.elem_type for value in model.graph.output]
    assert [value.name for value in model.graph.output] == [f"y{i}" for i in range(len(dtypes))]
    assert [onnx.helper.tensor_dtype_to_np_dtype(element) for element in types] == dtypes
    assert len(data) == model.ByteSize()  # nothing that onnx does not know


NUMBERS: dict[str, dict[str, list[int]]] = {
    "rows": {"rows": [2, 0, 2]},
    "tokens": {"starts": [0, 0, 1], "ends": [99, 99, 4]},
    "pad": {"pads": [0, 0, 2, 0, 0, 0, 0, 0]},
    "join": {},
}


def expected(form: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    match form:
        case "rows":
            return a[[2, 0, 2]]
        case "tokens":
            return a[:, :, 1:4]
        case "pad":
            return np.pad(a, ((0, 0), (0, 0), (2, 0), (0, 0)))
    return np.concatenate([a, b])


@pytest.mark.parametrize("form", NUMBERS)
def test_what_they_compute(form: str) -> None:
    rng = np.random.default_rng(0)
    a, b = ([rng.normal(size=(rows, 2, 5, 3)).astype(d) for d in DTYPES] for rows in (3, 1))
    names = {"ab": (a, b)} if form == "join" else {"x": (a,)}
    feeds = {
        f"{letter}{i}": array
        for letters, caches in names.items()
        for letter, cache in zip(letters, caches, strict=True)
        for i, array in enumerate(cache)
    }
    feeds |= {name: np.array(values) for name, values in NUMBERS[form].items()}
    model = ReferenceEvaluator(onnx.load_model_from_string(cache_graphs.graph(form, DTYPES)))
    for i, y in enumerate(model.run(None, feeds)):
        np.testing.assert_array_equal(y, expected(form, a[i], b[i]))
