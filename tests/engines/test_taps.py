from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.calib.streams import torch_streams
from pipeline.engines import taps
from pipeline.graphs import anatomy, export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.types import BASE, SkipSet, UserError
from tests import tiny

IDS = np.arange(5, 17)


@pytest.mark.parametrize("model_type", ["llama", "phi", "olmo2", "granite", "smollm3"])
def test_the_streams_of_a_graph_are_pytorchs(model_type: str, workdir: Path) -> None:
    """[M, T, C] before the first and after each layer; [L, T, C] between its sublayers."""
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type, num_hidden_layers=3)))
    outer, middle = taps.graph_streams(export.export_base(base_model))(IDS)
    truth = torch_streams(base_model.folder)(IDS)
    assert outer.shape == (4, 12, 64) and middle.shape == (3, 12, 64)
    for stream, expected in zip((outer, middle), truth, strict=True):
        np.testing.assert_allclose(stream, expected, atol=1e-5 * np.abs(expected).max())


def test_a_tapped_graph_has_the_values_as_outputs_and_its_file_is_not_changed(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    before, model = path.read_bytes(), graphfile.load(path)
    first = anatomy.find(model, 2, BASE)[0]
    start = anatomy.stream_before(first)
    assert start.producer().op_type == "Gather"
    with taps.tapped(path, model, [start, first.branch, start]) as runner:
        outputs = runner.infer(runner.feeds(IDS[None]))
    assert {start.name, first.branch.name} <= set(outputs)
    assert outputs[start.name].shape == (1, 12, 64) and path.read_bytes() == before


def test_only_a_base_graph_gives_streams(workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    with pytest.raises(UserError, match="leaves sublayers out; similarity is measured on a base graph"):
        taps.graph_streams(variants.cut(base, SkipSet.parse("mlp1")))
