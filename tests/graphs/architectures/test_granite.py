"""What is Granite's own: four scales, each of which a check sees, and none of which hides a join."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evals.check import check
from pipeline.graphs import anatomy, export, graphfile
from pipeline.models import checkpoint
from pipeline.types import BASE
from tests import tiny, truth
from tests.faults import graph

SCALES: dict[str, Any] = tiny.DIALECTS["granite"]


def test_a_sublayers_scale_is_within_its_branch(workdir: Path) -> None:
    joins = anatomy.find(graphfile.load(graph(workdir, model_type="granite")), 2, BASE)
    names = [str(join.branch.producer().name) for join in joins]  # type: ignore[union-attr]
    assert names == [f"/layers.{i}/{kind}/scaled" for i in range(2) for kind in ("attention", "mlp")]
    adds = [anatomy.join_node(join.branch).name for join in joins]
    assert adds == [f"/layers.{i}/{kind}/residual" for i in range(2) for kind in ("attention", "mlp")]


def test_a_scale_of_one_is_no_node(workdir: Path) -> None:
    scales = dict.fromkeys(SCALES, 1.0)
    nodes = {str(node.name) for node in graphfile.load(graph(workdir, model_type="granite", **scales)).graph}
    assert not any(name.endswith(("scaled", "scale")) for name in nodes)


@pytest.mark.slow
@pytest.mark.parametrize("key", SCALES)
def test_a_scale_that_is_forgotten_fails_the_check(key: str, workdir: Path) -> None:
    path = graph(workdir, model_type="granite")
    assert check.check(path).passed
    file = path.parent / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, key: SCALES[key] * 1.1}))
    assert export.export_base(checkpoint.open_checkpoint(path.parent)) == path
    file.write_text(json.dumps(said))
    assert not check.check(path, force=True).passed


def test_logits_are_divided(workdir: Path) -> None:
    logits = {}
    for name, divisor in (("plain", 1.0), ("divided", 10.0)):
        source = tiny.checkpoint(workdir / name, "granite", logits_scaling=divisor)
        path = export.export_base(checkpoint.resolve(str(source)))
        logits[name] = truth.graph_logits(path, np.array([[5, 9, 13, 40]]))
    np.testing.assert_allclose(logits["divided"], logits["plain"] / 10, rtol=1e-6)
