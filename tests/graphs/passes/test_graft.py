from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.graphs import export, graphfile
from pipeline.graphs.passes.graft import GraftPass
from pipeline.models import checkpoint
from pipeline.types import UserError
from tests import tiny

NAME = "model.layers.1.mlp.up_proj.weight"


def test_the_weights_of_the_file_are_read_there_and_the_others_where_they_were(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    healed = path.with_name("healed.safetensors")
    values = np.full((96, 64), 0.5, np.float32)
    save_file({NAME: values}, healed)
    model = graphfile.load(path)
    GraftPass(healed, "a" * 64)(model)
    assert model.metadata_props["healed_sha256"] == "a" * 64
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    np.testing.assert_array_equal(weights[NAME].numpy(), values)
    files = {name: str(tensor.location) for name, tensor in weights.items() if hasattr(tensor, "location")}
    assert files.pop(NAME) == healed.name and set(files.values()) == {"model.safetensors"}


@pytest.mark.parametrize("tensors", [{"model.other": (96, 64)}, {NAME: (64, 96)}], ids=["name", "shape"])
def test_a_weight_that_the_graph_lacks_is_refused(tensors: dict[str, tuple[int, int]], workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    healed = path.with_name("healed.safetensors")
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, healed)
    with pytest.raises(UserError, match="the graph has no such weight"):
        GraftPass(healed, "a" * 64)(graphfile.load(path))
