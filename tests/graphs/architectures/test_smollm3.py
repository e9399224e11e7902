"""What is SmolLM3's own: layers without rope, whose window is theirs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evals.check import check
from pipeline.graphs import export, graphfile
from pipeline.models import checkpoint
from tests.faults import graph


def rotated(path: Path) -> set[str]:
    """The layers of a graph that have a rotary embedding."""
    return {str(n.name).split("/")[1] for n in graphfile.load(path).graph if n.op_type == "RotaryEmbedding"}


def test_the_published_pattern_leaves_out_every_fourth(workdir: Path) -> None:
    path = graph(workdir, model_type="smollm3", num_hidden_layers=8, no_rope_layer_interval=4)
    assert rotated(path) == {f"layers.{i}" for i in range(8)} - {"layers.3", "layers.7"}


def test_a_model_without_any_rope_has_no_table_and_passes(workdir: Path) -> None:
    path = graph(workdir, model_type="smollm3", no_rope_layers=[0, 0])
    model = graphfile.load(path)
    assert not rotated(path) and not any(n.op_type in ("Cos", "Sin") for n in model.graph)
    assert "position_ids" in {value.name for value in model.graph.inputs}
    assert check.check(path).passed


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"no_rope_layers": [1, 1]}, {"no_rope_layers": [0, 1]}])
def test_rope_in_another_layer_fails_the_check(changes: dict[str, Any], workdir: Path) -> None:
    path = graph(workdir, model_type="smollm3")
    assert check.check(path).passed and rotated(path) == {"layers.0"}
    file = path.parent / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, **changes}))
    assert export.export_base(checkpoint.open_checkpoint(path.parent)) == path
    file.write_text(json.dumps(said))
    assert not check.check(path, force=True).passed
