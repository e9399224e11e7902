"""An ONNX file, read with suspicion and written atomically with its sidecar.

The weights stay external: byte ranges of the safetensors files in the same folder. Reading a graph reads no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google.protobuf.message
import onnx_ir as ir

from pipeline import __version__, store
from pipeline.types import UserError


def load(path: Path) -> ir.Model:
    """The graph in memory, weights untouched, after a check that every weight lies inside the graph's own folder.

    Raises:
        UserError: missing file, no ONNX, or external data that is missing, leaves the folder, or ends beyond its file.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; `pipeline list` shows the graphs, `pipeline export` makes one"
        )
    try:
        model = ir.load(path)
    except (google.protobuf.message.DecodeError, ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not an ONNX file ({str(error).splitlines()[0]}); make it again with `pipeline export`"
        ) from None
    if not len(model.graph) and not model.graph.outputs:
        raise UserError(
            f"{path} is not an ONNX graph: it holds no nodes; make it again with `pipeline export`"
        )
    sizes: dict[str, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(path, tensor, sizes)
    return model


def _check_external(path: Path, tensor: ir.ExternalTensor, sizes: dict[str, int]) -> None:
    location = str(tensor.location)
    if location not in sizes:
        file = path.parent / location
        if Path(location).name != location or location in ("", ".", "..") or file.is_symlink():
            raise UserError(
                f"{path}: weight {tensor.name!r} points at {location!r}, outside the graph's folder; refused"
            )
        if not file.is_file():
            raise UserError(
                f"{path}: the weights file {file} is missing; run the `pipeline export` that made it again"
            )
        sizes[location] = file.stat().st_size
    if (tensor.offset or 0) + (tensor.length or 0) > sizes[location]:
        raise UserError(
            f"{path}: weight {tensor.name!r} ends beyond {location}: the file is truncated; restore it"
        )


def save(model: ir.Model, path: Path, record: dict[str, Any]) -> None:
    """Writes graph and sidecar. A kill leaves the old pair, or a graph that its sidecar disowns: made again next time."""
    with store.atomic(path) as temporary:
        temporary.write_bytes(ir.to_proto(model).SerializeToString())
    store.write_sidecar(path, {"artefact": "graph", **record})


def tools() -> dict[str, str]:
    """Versions of what writes a graph."""
    return {"skip-pipeline": __version__, **store.versions("onnx-ir")}
