"""ONNX files from outside: a tensor that lies is refused wherever it hides, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline.graphs import export, graphfile
from pipeline.types import UserError
from tests import results

FLOAT = onnx.TensorProto.FLOAT


def external(
    location: str = "weights.bin", dims: tuple[int, ...] = (2, 2), **entries: str
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def lying(dims: tuple[int, ...], data_type: int = FLOAT, **fields: object) -> onnx.TensorProto:
    return onnx.TensorProto(name="w", data_type=data_type, dims=dims, **fields)


def add(x: str, y: str, out: str, name: str = "") -> onnx.NodeProto:
    return helper.make_node("Add", [x, y], [out], name=name or out)


def value(name: str, *dims: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, dims)


def model(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    nodes = nodes or (add("x", "w", "y"),)
    graph = helper.make_graph(nodes, "g", [value("x", 2, 2)], [value("y", 2, 2)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def body(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [], [value("z", 2, 2)], weights)


def in_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model(weights=(tensor,))


def in_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model(helper.make_node("Constant", [], ["w"], value=tensor), add("x", "w", "y"))


def in_any_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model(helper.make_node("Odd", ["x"], ["y"], domain="odd", table=[tensor]))


def in_body_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    branch = body(add("x", "w", "z"), weights=(tensor,))
    return model(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def in_body_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    branch = body(helper.make_node("Constant", [], ["z"], value=tensor))
    inner = body(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    return model(helper.make_node("Loop", ["x"], ["y"], body=inner))


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = model(helper.make_node("F", ["x"], ["y"], domain="d"))
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), add("x", "w", "y")]
    opsets = [helper.make_opsetid("", 23)]
    proto.functions.append(helper.make_function("d", "F", ["x"], ["y"], nodes, opsets))
    proto.opset_import.append(helper.make_opsetid("d", 1))
    return proto


PLACES = (in_initializer, in_constant, in_any_attribute, in_body_initializer, in_body_constant, in_function)


@pytest.fixture
def folder(workdir: Path) -> Path:
    (workdir / "weights.bin").write_bytes(bytes(64))
    (workdir / "link.bin").symlink_to("/etc/passwd")
    (workdir / "sub").mkdir()
    (workdir / "a.onnx").write_bytes(b"")
    return workdir


def refusal(proto: onnx.ModelProto) -> str:
    path = Path("g.onnx")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError) as error:
        graphfile.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    return str(error.value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    [
        "../etc/passwd",
        "/etc/passwd",
        "sub/w",
        "link.bin",
        "",
        ".",
        "..",
        "sub",
        "a\0b",
        "n" * 300,
        "é\n",
        "a.onnx",
    ],
)
def test_data_outside_the_folder_is_refused_wherever_it_hides(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], location: str, folder: Path
) -> None:
    words = refusal(place(external(location)))
    expected = ("outside the graph's folder", "is missing", "no file of weights")
    assert any(one in words for one in expected) if place is in_initializer else "another file" in words


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "-1"}, "no number of bytes"),
        ({"offset": "1.5"}, "no number of bytes"),
        ({"offset": "٣"}, "no number of bytes"),
        ({"offset": "9" * 5000}, "no number of bytes"),
        ({"offset": "x"}, "no number of bytes"),
        ({"length": ""}, "no number of bytes"),
        ({"length": "-16"}, "no number of bytes"),
        ({"length": "12"}, "12 bytes in weights.bin; its shape needs 16"),
        ({"offset": "49"}, "ends beyond weights.bin: the file is truncated"),
        ({"offset": "999999999999999999"}, "truncated"),
        ({"more": "x"}, "says 'more' of its data"),
    ],
)
def test_where_data_lies_must_be_numbers_within_the_file(
    entries: dict[str, str], words: str, folder: Path
) -> None:
    assert words in refusal(in_initializer(external(**entries)))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"weights.bin", "graph.initializer.external_data.value"),
        (b"the-node", "graph.node.name"),
        (b"the-input", "graph.node.input"),
    ],
)
def test_text_that_is_not_utf8_is_refused(text: bytes, place: str, folder: Path) -> None:
    proto = model(add("the-input", "w", "y", "the-node"), weights=(external(),))
    path = Path("g.onnx")
    path.write_bytes(proto.SerializeToString().replace(text, b"\xff" * len(text)))
    with pytest.raises(UserError, match=f"as {place}, which is not UTF-8 text"):
        graphfile.load(path)


def test_data_in_the_folder_is_read(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    for entries in ({"offset": "16"}, {"offset": "16", "checksum": "x"}):
        Path("g.onnx").write_bytes(in_initializer(external(**entries)).SerializeToString())
        weight = graphfile.load(Path("g.onnx")).graph.initializers["w"].const_value
        assert weight is not None and weight.numpy().tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lying((2**39, 2**39)), "holds 0 numbers"),
        (lying((10**6, 10**6), raw_data=b""), "holds 0 bytes"),
        (lying((2**62,)), "that is no size"),
        (lying((-1, 4), raw_data=b"\0" * 16), "dimension of -1"),
        (lying((2, 2), raw_data=b"\0" * 15), "holds 15 bytes where its shape needs 16"),
        (lying((2, 2), float_data=[1.0]), "holds 1 numbers where its shape needs 4"),
        (lying((2, 2), 0, raw_data=b"\0" * 16), "which ONNX does not have"),
        (lying((2, 2), 99, raw_data=b"\0" * 16), "which ONNX does not have"),
        (lying((2,), onnx.TensorProto.STRING, raw_data=b"ab"), "holds 2 bytes"),
    ],
)
def test_a_tensor_whose_shape_lies_is_refused_wherever_it_hides(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], tensor: onnx.TensorProto, words: str, folder: Path
) -> None:
    assert words in refusal(place(tensor))


def test_tensors_of_all_types_are_read(folder: Path) -> None:
    arrays = [np.zeros((3, 3), dtype) for dtype in ("f4", "f2", "f8", "i1", "i8", "u2", "?", "c8")]
    tensors = [numpy_helper.from_array(array, f"t{k}") for k, array in enumerate(arrays)]
    tensors += [
        helper.make_tensor(f"m{t}", t, [3], [1, 0, 1]) for t in (1, 2, 6, 7, 9, 10, 11, 16, 17, 21, 22)
    ]
    tensors.append(numpy_helper.from_array(np.zeros((0, 5), "f4"), "w"))
    Path("g.onnx").write_bytes(model(weights=tuple(tensors)).SerializeToString())
    assert len(graphfile.load(Path("g.onnx")).graph.initializers) == len(tensors)


def test_sparse_tensors_are_refused(folder: Path) -> None:
    indices = numpy_helper.from_array(np.array([1]))
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(np.ones(1, "f4"), "v"), indices, [10**12])
    for proto in (
        model(helper.make_node("Constant", [], ["w"], sparse_value=sparse), add("x", "w", "y")),
        model(),
    ):
        if not proto.graph.node[0].attribute:
            proto.graph.sparse_initializer.append(sparse)
        assert "sparse tensor" in refusal(proto)


def test_cycles_are_refused(folder: Path) -> None:
    assert "cycle, through" in refusal(model(add("x", "b", "a"), add("a", "x", "b"), add("a", "b", "y")))
    assert "cycle, through" in refusal(model(add("y", "x", "y")))
    branch = body(add("x", "y", "z"))  # a body that reads what its own node gives
    assert "cycle" in refusal(
        model(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    )
    branch = body(add("q", "x", "p"), add("p", "x", "q"), add("p", "q", "z"))
    assert "cycle" in refusal(
        model(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    )
    assert "two nodes give 'y'" in refusal(model(add("x", "x", "y", "one"), add("x", "x", "y", "two")))
    proto = in_function(numpy_helper.from_array(np.ones((2, 2), "f4")))
    proto.functions[0].node.append(helper.make_node("F", ["x"], ["q"], domain="d"))
    assert "the function 'F' calls itself" in refusal(proto)


def test_nodes_out_of_order_are_no_cycle(folder: Path) -> None:
    branch = body(add("x", "a", "z"))
    proto = model(
        add("a", "b", "y"),
        helper.make_node("If", ["x"], ["b"], then_branch=branch, else_branch=branch),
        add("x", "x", "a"),
    )
    Path("g.onnx").write_bytes(proto.SerializeToString())
    assert len(graphfile.load(Path("g.onnx")).graph) == 3


@pytest.mark.parametrize("dim", [-1, -(2**63), 2**62])
def test_shapes_of_inputs_are_sizes(dim: int, folder: Path) -> None:
    proto = model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = dim
    assert f"dimension of {dim}" in refusal(proto)


def test_bodies_nested_a_thousand_deep_are_one_line(folder: Path) -> None:
    data = b""
    for field in (7, *[1, 5, 6] * 1000)[::-1]:  # model.graph.node.attribute.g.node.attribute.g…
        size, varint = len(data), bytearray()
        while size > 127:
            varint.append(size & 127 | 128)
            size >>= 7
        data = bytes([field << 3 | 2, *varint, size]) + data
    Path("g.onnx").write_bytes(data)
    with pytest.raises(UserError, match="is not an ONNX file"):
        graphfile.load(Path("g.onnx"))


def test_an_export_of_optimums_is_looked_at_before_anything_is_copied(folder: Path) -> None:
    export_folder = folder / "export"
    export_folder.mkdir()
    results.put(export_folder / "config.json", {"num_hidden_layers": 1})
    proto = in_constant(external("../secret.bin"))
    (export_folder / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="another file"):
        export.export_from_onnx(export_folder)
    assert not Path("graphs").exists()


def test_bytes_that_flip_are_one_line_or_a_graph(folder: Path) -> None:
    data = in_function(numpy_helper.from_array(np.ones((2, 2), "f4"))).SerializeToString()
    flips = np.random.default_rng(0)
    for _ in range(3000):
        spoilt = bytearray(data)
        for at in flips.integers(0, len(data), flips.integers(1, 4)):
            spoilt[at] ^= 1 << flips.integers(0, 8)
        Path("g.onnx").write_bytes(spoilt)
        with contextlib.suppress(UserError):
            graphfile.load(Path("g.onnx"))
