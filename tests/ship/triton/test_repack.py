"""A graph with just the weights that it uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.graphs import graphfile
from pipeline.ship.triton import repack
from pipeline.types import UserError
from tests import serving


@pytest.fixture
def graph(workdir: Path) -> Path:
    return serving.project(workdir, ("attn2-3",))[0]


def weights(graph: Path) -> dict[str, ir.ExternalTensor]:
    values = graphfile.load(graph).graph.initializers.items()
    return {
        name: value.const_value for name, value in values if isinstance(value.const_value, ir.ExternalTensor)
    }


def test_every_weight_is_there_once_aligned_and_equal(graph: Path) -> None:
    repack.repack(graph, Path("out"))
    before, after = weights(graph), weights(Path("out/model.onnx"))
    assert set(before) == set(after) and after
    for name, tensor in after.items():
        assert tensor.location == "model.data" and tensor.offset % 4096 == 0
        np.testing.assert_array_equal(tensor.numpy(), before[name].numpy())
    ranges = {(tensor.location, tensor.offset, tensor.length) for tensor in before.values()}
    assert len({tensor.offset for tensor in after.values()}) == len(ranges)
    size = sum(-(-length // 4096) * 4096 for _, _, length in ranges)
    assert 0 <= size - Path("out/model.data").stat().st_size < 4096  # nothing else, the last one not padded


def test_the_end_of_a_file_is_an_error(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"12345")
    with (tmp_path / "data").open("wb") as out, pytest.raises(UserError, match="ends before its tensors do"):
        repack._DataFile(out).add(short, 2, 9)
