from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from onnx_ir.passes import InvariantError

from pipeline.graphs import export, graphfile
from pipeline.graphs.passes.skip import SkipPass
from pipeline.models import checkpoint
from pipeline.types import SkipSet, UserError
from tests import tiny


@pytest.fixture
def model(workdir: Path) -> ir.Model:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", num_hidden_layers=3)))
    return graphfile.load(export.export_base(base_model))


def caches(model: ir.Model) -> set[str]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return {str(v.name) for v in values if str(v.name).startswith(("past_key_values.", "present."))}


def test_a_skipped_attention_loses_its_cache_and_a_skipped_mlp_none(model: ir.Model) -> None:
    before = caches(model)
    SkipPass(SkipSet((1,), (2,)), 3)(model)
    gone = {f"{kind}.1.{x}" for kind in ("past_key_values", "present") for x in ("key", "value")}
    assert before - caches(model) == gone
    names = {str(node.name).split("/")[1:3][-1] for node in model.graph if "/layers.1/" in str(node.name)}
    assert names == {"mlp"} and not any("/layers.2/mlp" in str(node.name) for node in model.graph)


def test_a_shape_that_hangs_on_a_skipped_cache_moves_to_another(model: ir.Model) -> None:
    """Tracers take the mask's length from layer 0's cache."""
    inputs = {value.name: value for value in model.graph.inputs}
    shape = ir.node("Shape", [inputs["past_key_values.0.key"]], name="length")
    model.graph.insert_before(model.graph[0], shape)
    shape.outputs[0].name = "length"
    model.graph.outputs.append(shape.outputs[0])
    SkipPass(SkipSet((0,), ()), 3)(model)
    assert shape.inputs[0] is inputs["past_key_values.1.key"]


def test_a_graph_without_the_expected_joins_is_refused_before_it_is_changed(model: ir.Model) -> None:
    nodes = len(model.graph)
    with pytest.raises(InvariantError) as caught:
        SkipPass(SkipSet((1,), ()), 4)(model)
    assert isinstance(caught.value.__cause__, UserError) and len(model.graph) == nodes
