from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from pipeline.graphs.architectures._builder import INT64, IR_VERSION, OPSET, GraphBuilder
from pipeline.models import checkpoint
from pipeline.types import UserError
from tests import tiny

NORM = "model.norm.weight"


@pytest.fixture
def source(workdir: Path) -> checkpoint.Checkpoint:
    return checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny")))


def test_nodes_are_named_by_their_place_and_never_twice(source: checkpoint.Checkpoint) -> None:
    graph = GraphBuilder(source, "fp32")
    x = graph.input("x", INT64, ["n"])
    with graph.scope("layers.0"), graph.scope("mlp"):
        values = [graph.op("Neg", [x]), graph.op("Neg", [x]), graph.op("Neg", [x], label="residual")]
    names = [value.producer().name for value in values]
    assert names == ["/layers.0/mlp/Neg", "/layers.0/mlp/Neg_1", "/layers.0/mlp/residual"]
    assert values[1].name == "/layers.0/mlp/Neg_1:0"


def test_constants_of_one_name_are_one_tensor(source: checkpoint.Checkpoint) -> None:
    graph = GraphBuilder(source, "fp32")
    assert graph.ints(0, 1) is graph.ints(0, 1) and graph.scalar(0) is not graph.ints(0)


def test_a_weight_stays_in_its_file_and_is_cast_by_a_node(source: checkpoint.Checkpoint) -> None:
    graph = GraphBuilder(source, "fp16")
    value = graph.weight(NORM, 64)
    assert value is graph.weight(NORM, 64)
    cast = value.producer()
    assert cast.op_type == "Cast" and cast.attributes["to"].value == ir.DataType.FLOAT16
    tensor, place = cast.inputs[0].const_value, source.tensors[NORM]
    assert (tensor.location, tensor.offset, tensor.length) == (place.file, place.offset, place.nbytes)
    assert GraphBuilder(source, "fp32").weight(NORM, 64).producer() is None


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.nothing", (64,), r"implies the weight model.nothing, but the checkpoint lacks it"),
        (NORM, (65,), r"model.norm.weight is \[64\], but config.json implies \[65\]"),
    ],
)
def test_a_weight_that_is_not_there_is_refused(
    name: str, shape: tuple[int, ...], reason: str, source: checkpoint.Checkpoint
) -> None:
    with pytest.raises(UserError, match=reason):
        GraphBuilder(source, "fp32").weight(name, *shape)


def test_what_no_output_needs_is_not_in_the_model(source: checkpoint.Checkpoint) -> None:
    graph = GraphBuilder(source, "fp32")
    x = graph.input("x", INT64, ["n"])
    y = graph.op("Neg", [x])
    graph.op("Abs", [x])
    graph.weight(NORM, 64)
    model = graph.finish([y])
    assert [node.op_type for node in model.graph] == ["Neg"] and not model.graph.initializers
    assert (model.ir_version, model.graph.opset_imports[""]) == (IR_VERSION, OPSET) == (10, 23)
