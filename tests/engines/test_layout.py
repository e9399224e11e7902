from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from pipeline import store
from pipeline.engines import layout
from pipeline.graphs import export, graphfile, merge, variants
from pipeline.graphs.passes.stack_weights import Stack
from pipeline.models import checkpoint, costs
from pipeline.models.config import read_config
from pipeline.models.quantisation import files
from pipeline.runtime.runner import Array
from pipeline.types import SkipSet
from tests import quantised, tiny


def stored(folder: Path, name: str, array: Array) -> ir.ExternalTensor:
    """A tensor behind three bytes of a file of its own."""
    (folder / name).write_bytes(b"abc" + array.tobytes())
    dtype = ir.DataType.from_numpy(array.dtype)
    shape = ir.Shape(array.shape)
    return ir.ExternalTensor(name, 3, array.nbytes, dtype, shape=shape, name=name, base_dir=folder)


def test_stacks_are_cast_and_lie_one_below_the_other(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece at a time; what fp16 cannot hold is infinite, as a Cast has it, and no warning."""
    monkeypatch.setattr(layout, "_PIECE", 5)
    one, two = np.arange(12).reshape(4, 3) / 7, np.array([[1e6, -1e6, 6e-8]])
    parts = (
        stored(workdir, "a", one.astype(ml_dtypes.bfloat16)),
        stored(workdir, "b", two.astype(ml_dtypes.bfloat16)),
    )
    os.link(workdir / "a", workdir / "c")  # onnx-ir itself reads no file with two links
    stacks = (Stack("a+b", parts, ir.DataType.FLOAT16), Stack("b", parts[1:], ir.DataType.FLOAT))
    assert stacks[0].shape == (5, 3) and stacks[0].nbytes == 30
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    before = set(workdir.iterdir())
    with layout.written(layout.Layout(model, stacks, 0, 0), workdir) as source:
        assert set(workdir.iterdir()) == before  # nothing that a kill could leave
        expected = np.concatenate([one, two]).astype(ml_dtypes.bfloat16).astype(np.float16)
        np.testing.assert_array_equal(source.weights["a+b"].view(np.float16).reshape(5, 3), expected)
        assert np.isinf(expected[4, 0]) and expected[4, 2] > 0
        exact = two.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(np.array(source.weights["b"]).view(np.float32)[None], exact)


def test_the_bytes_are_those_of_the_graph_as_it_is_read(workdir: Path) -> None:
    folder = tiny.checkpoint(workdir / "source" / "tiny", "llama", "bf16")
    graph = export.export_base(checkpoint.resolve(str(folder)), "fp16")
    laid_out = layout.laid_out(graphfile.load(graph))
    stored_bytes = (graph.parent / "model.safetensors").stat().st_size
    assert stored_bytes * 0.9 < laid_out.stacked_bytes <= laid_out.weight_bytes < stored_bytes * 1.1
    assert laid_out.merged_bytes == 0


def test_a_graph_that_needs_nothing_new_is_read_as_it_is(workdir: Path) -> None:
    folder = tiny.checkpoint(workdir / "source" / "tiny", "gpt_neox", "fp16")
    graph = export.export_base(checkpoint.resolve(str(folder)), "fp16")
    laid_out = layout.laid_out(graphfile.load(graph))
    with layout.written(laid_out, workdir) as source:
        assert laid_out.stacks == () and source.weights == {} and source.proto


@pytest.mark.parametrize("precision", ["int4-fp16", "int8-b64-fp16", "int4-fp32"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_of_blocks_are_what_costs_predicts(workdir: Path, precision: str, tied: bool) -> None:
    """But for constants: of the 4 and 8 bits as they are stored, and of scales as they are read."""
    graph = quantised.graph(workdir, precision=precision, skip="attn0+mlp1", tie_word_embeddings=tied)
    read, said = store.variant(graph), read_config(graph.parent)
    predicted = costs.weight_bytes(said, SkipSet((0,), (1,)), read.precision_name)
    number = costs.number_bytes(read.precision_name)
    (file,) = store.overlays(graph)
    blocks = files.in_blocks(files.stored(file), read.precision)
    kept = [one for name, one in blocks.items() if not _cut(name)]
    scales = sum(one.scales.nbytes for one in kept)
    laid_out = layout.laid_out(graphfile.load(graph))
    assert 0 <= laid_out.weight_bytes - predicted - scales * (number - 2) // 2 < 500
    assert laid_out.stacked_bytes < laid_out.weight_bytes / 2
    assert laid_out.merged_bytes == sum(one.values.nbytes for one in kept if one.bits == 4)


def _cut(name: str) -> bool:
    """Whether a weight is of what the variant `attn0+mlp1` leaves out."""
    return ".0.self_attn." in name or ".1.mlp." in name


def test_blocks_that_several_products_read_are_found(workdir: Path) -> None:
    """Of 4 bits, above the fork of a merged graph; not of one variant, nor the head's 8."""
    base = quantised.graph(workdir)
    merged = [merge.merge([base, variants.cut(base, SkipSet.parse(name))]) for name in ("attn1", "mlp2")]
    found = [layout.shared_blocks(graphfile.load(graph)) for graph in (*merged, base)]
    assert found == ["model.layers.1.mlp.gate_proj.weight.values", None, None]
