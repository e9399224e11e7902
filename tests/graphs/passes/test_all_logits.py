from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from pipeline.graphs import export, graphfile
from pipeline.graphs.passes.all_logits import AllLogitsPass
from pipeline.models import checkpoint
from pipeline.types import UserError
from tests import tiny


def test_the_input_goes_and_the_logits_have_every_position(workdir: Path) -> None:
    model = graphfile.load(export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny")))))
    AllLogitsPass()(model)
    assert "logits_positions" not in {value.name for value in model.graph.inputs}
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    assert str(logits.shape) == "[batch,sequence,96]"
    assert not any(node.op_type == "GatherND" for node in model.graph)
    with pytest.raises(UserError, match="no logits_positions to take out"):
        AllLogitsPass()(model)


def test_logits_of_another_form_are_refused(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    for form in (ir.Shape([2]), None):
        model = graphfile.load(path)
        next(value for value in model.graph.outputs if value.name == "logits").shape = form
        with pytest.raises(UserError, match="no logits of three dimensions"):
            AllLogitsPass()(model)
