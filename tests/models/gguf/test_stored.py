"""Every way to store a tensor that the `gguf` library can read, against its own dequantisation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import numpy.typing as npt
import pytest
from gguf import quants

from pipeline.models.gguf import header, stored
from pipeline.types import UserError

Kind = library.GGMLQuantizationType
DEQUANTISED = sorted(set(quants._type_traits) - {Kind.BF16}, key=lambda kind: kind.name)
OTHERS = sorted(set(Kind) - set(DEQUANTISED) - {Kind.BF16, Kind.F16, Kind.F32, Kind.F64})
ROWS, BLOCKS = 8, 2


def random_blocks(kind: Kind) -> npt.NDArray[np.uint8]:
    """[ROWS, bytes] of blocks whose every bit is random, but for numbers that are none or beyond float16."""
    _, width = library.GGML_QUANT_SIZES[kind]
    chance, rows = np.random.default_rng(int(kind)), []
    while len(rows) < ROWS:
        row = chance.integers(0, 256, (1, BLOCKS * width), np.uint8)
        with np.errstate(all="ignore"):
            numbers = library.dequantize(row, kind)
        if np.all(np.isfinite(numbers)) and 1e-4 < np.abs(numbers).max() < 65504:
            rows.append(row[0])
    return np.stack(rows)


def written(file: Path, blocks: npt.NDArray[Any], kind: Kind) -> header.GgufTensor:
    """A tensor as it lies in a file."""
    writer = library.GGUFWriter(file, "llama")
    writer.add_tensor("x", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return header.read(file).tensors[0]


@pytest.mark.parametrize("kind", DEQUANTISED, ids=lambda kind: kind.name)
def test_what_the_library_dequantises_is_read(kind: Kind, tmp_path: Path) -> None:
    blocks = random_blocks(kind)
    expected = library.dequantize(blocks, kind)
    array = stored.values(written(tmp_path / "m.gguf", blocks, kind))
    assert array.shape == expected.shape == (ROWS, BLOCKS * library.GGML_QUANT_SIZES[kind][0])
    assert array.dtype == np.float16 and len(np.unique(expected)) > 2
    np.testing.assert_array_equal(array, expected.astype(np.float16))


@pytest.mark.parametrize(("kind", "factor"), [(Kind.MXFP4, 1e6), (Kind.MXFP4, 1e-7), (Kind.Q8_0, 1e5)])
def test_quantised_numbers_beyond_float16_lose_nothing(kind: Kind, factor: float, tmp_path: Path) -> None:
    """They stay float32, or become bfloat16 where that says the same."""
    numbers = np.random.default_rng(0).normal(0, factor, (ROWS, 64)).astype(np.float32)
    blocks = library.quantize(numbers, kind)
    array = stored.values(written(tmp_path / "m.gguf", blocks, kind))
    assert array.dtype != np.float16
    np.testing.assert_array_equal(array.astype(np.float32), library.dequantize(blocks, kind))


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_what_it_does_not_is_refused_by_name(kind: Kind, tmp_path: Path) -> None:
    block, width = library.GGML_QUANT_SIZES[kind]
    tensor = header.GgufTensor("blk.0.x", tmp_path / "m.gguf", kind, (2, block), 0, 2 * width)
    tensor.file.write_bytes(bytes(2 * width))
    message = rf"m\.gguf: blk\.0\.x is of type {re.escape(kind.name)}, which cannot be read"
    with pytest.raises(UserError, match=message) as caught:
        stored.values(tensor)
    assert "\n" not in str(caught.value)
