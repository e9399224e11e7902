"""An ONNX file, read with suspicion and written atomically with its sidecar.

The weights stay external: byte ranges of the safetensors files in the same folder. Reading a graph reads none
of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pipeline import __version__, store
from pipeline.graphs import foreign
from pipeline.types import TensorSlice, UserError, first_line

WEIGHTS = "weights"
"""Key of the identity of the checkpoint in a graph's metadata."""
STORED = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
"""Types of tensors that graphs read, as safetensors and onnx-ir call them."""
MAX_BYTES = 2**31 - 1
"""Bytes of a graph's file at most: protobuf's own limit. Its weights lie beside it."""
_MALFORMED = (
    ir.serde.SerdeError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    RecursionError,
)  # fmt: skip
"""What onnx-ir raises of messages that are no graph."""
CACHE_INPUT = "past_key_values."
"""How the names of the cache's inputs begin: past_key_values.{i}.key and .value."""


def load(path: Path) -> ir.Model:
    """The graph in memory, weights untouched; every weight is known to lie inside the graph's own folder.

    Raises:
        UserError: the file is missing or no ONNX, or as `foreign.read`.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; `pipeline list` shows the graphs, `pipeline export` makes one"
        )
    store.records.refuse_odd_file(path, MAX_BYTES)
    proto = foreign.read(path)
    try:
        model = ir.from_proto(proto)
    except _MALFORMED as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(
            f"{path} is not an ONNX file ({reason}); make it again with `pipeline export`"
        ) from None
    if not len(model.graph) and not model.graph.outputs:
        raise UserError(
            f"{path} is not an ONNX graph: it holds no nodes; make it again with `pipeline export`"
        )
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = path.parent
    return model


def data_files(model: ir.Model) -> list[str]:
    """Names of the files that hold a graph's weights, in its folder."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def save(model: ir.Model, path: Path, fields: Mapping[str, Any]) -> None:
    """Writes graph and sidecar.

    A kill leaves the old pair, or a graph that its sidecar does not describe: the next run makes it again.

    Args:
        model: the graph.
        path: its file.
        fields: of its GraphRecord or MergedRecord, but those of the file itself.
    """
    # So that no two models share the SHA-256 of a graph, by which results, engines and checks go.
    model.metadata_props[WEIGHTS] = str(fields["weights"])
    with store.atomic(path) as temporary:
        temporary.write_bytes(ir.to_proto(model).SerializeToString())
    store.write_sidecar(path, {"artefact": "graph", **fields})


def external(file: Path, name: str, tensor: TensorSlice) -> ir.ExternalTensor:
    """A tensor of a safetensors file, left where it lies.

    Args:
        file: in the graph's folder.
        name: of the tensor.
        tensor: where it lies.

    Raises:
        UserError: no graph reads its type.
    """
    if tensor.dtype not in STORED:
        raise UserError(f"{file}: {name} is stored as {tensor.dtype}, which no graph reads")
    return ir.ExternalTensor(
        tensor.file,
        tensor.offset,
        tensor.nbytes,
        STORED[tensor.dtype],
        shape=ir.Shape(tensor.shape),
        name=name,
        base_dir=file.parent,
    )


def initializer(file: Path, name: str, tensor: TensorSlice) -> ir.Value:
    """A weight of a graph whose data is such a tensor; arguments and errors as `external`."""
    stored = external(file, name, tensor)
    form = ir.TensorType(stored.dtype)
    return ir.Value(name=name, const_value=stored, type=form, shape=ir.Shape(tensor.shape))


def is_cache(value: ir.Value) -> bool:
    """Whether a graph input holds a layer's keys or values."""
    return bool(value.name and value.name.startswith(CACHE_INPUT))


def tools() -> dict[str, str]:
    """Package → version of what writes a graph."""
    return {"skip-pipeline": __version__, **store.versions("onnx-ir")}
