"""The numbers of a tensor are kept as the file says them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pipeline.models.gguf import header, stored, tensors
from pipeline.models.gguf.convert import convert
from pipeline.types import UserError
from tests import tiny_gguf
from tests.tiny_gguf import Kind, Tiny

NAME = "blk.0.ffn_up.weight"


def read(folder: Path, array: Any, kind: Kind) -> Any:
    """What is read of a tensor that was stored as `kind`."""
    how = Tiny(tensors={NAME: array}, kinds={NAME: kind})
    file = tiny_gguf.write(tiny_gguf.source(folder / "s"), folder / "m.gguf", how)
    return stored.values(next(tensor for tensor in header.read(file).tensors if tensor.name == NAME))


@pytest.mark.parametrize(
    ("numbers", "kind", "kept"),
    [
        (0.5, Kind.F32, np.float16),
        (1 / 3, Kind.F32, np.float32),
        (70000.0, Kind.F32, np.float32),
        (1e-30, Kind.F32, np.float32),
        (65536.0, Kind.F32, ml_dtypes.bfloat16),  # exact there
        (1 / 3, Kind.F16, np.float16),
        (1 / 3, Kind.BF16, ml_dtypes.bfloat16),
        (1e30, Kind.BF16, ml_dtypes.bfloat16),
        (1 / 3, Kind.Q8_0, np.float16),
        (100_000.0, Kind.Q8_0, np.float32),
    ],
)
def test_the_type_holds_what_the_file_says(numbers: float, kind: Kind, kept: Any, tmp_path: Path) -> None:
    given = np.full((96, 64), numbers, np.float32)
    array = read(tmp_path, given, kind)
    assert array.dtype == kept and np.all(np.isfinite(array.astype(np.float64)))
    step = {Kind.F32: 0.0, Kind.F16: 1e-3, Kind.BF16: 1e-2, Kind.Q8_0: 1e-2}[kind]
    np.testing.assert_allclose(array.astype(np.float64), given.astype(np.float64), rtol=step)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_is_refused(number: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight holds NaN or infinity"):
        read(tmp_path, np.full((96, 64), number, np.float32), Kind.F32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output.bias": np.zeros(300)}, r"holds the tensor output\.bias"),
        ({"blk.0.attn_q_norm.weight": np.ones(16)}, r"holds the tensor blk\.0\.attn_q_norm\.weight"),
        ({"rope_factors_long.weight": np.ones(16)}, r"holds the tensor rope_factors_long\.weight"),
        ({"blk.0.ffn_gate_inp.weight": np.ones((2, 64))}, r"holds the tensor blk\.0\.ffn_gate_inp"),
        ({"blk.0.attn_q.scale": np.ones(1)}, r"holds the tensor blk\.0\.attn_q\.scale"),
        ({NAME: np.ones((64, 96))}, r"blk\.0\.ffn_up\.weight is \[64, 96\]"),
        ({NAME: None}, r"lacks the tensor blk\.0\.ffn_up\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", Tiny(tensors=changes))
    with pytest.raises(UserError, match=message) as caught:
        convert(file, tmp_path / "c")
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()


def test_the_permutation_is_undone() -> None:
    weight = np.arange(32 * 3.0).reshape(32, 3)
    np.testing.assert_array_equal(tensors.undo_permutation(tiny_gguf.permuted(weight, 4), 4), weight)
    np.testing.assert_array_equal(
        tensors.undo_permutation(tiny_gguf.permuted(weight[:, 0], 2), 2), weight[:, 0]
    )


def test_the_order_of_rows_is_the_converters_and_is_undone() -> None:
    weight = np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    stored = weight[tensors.row_order(24, 3)]
    assert np.array_equal(stored, tiny_gguf.permuted(weight, 3)) and not np.array_equal(stored, weight)
    assert np.array_equal(tensors.undo_permutation(stored, 3), weight)
