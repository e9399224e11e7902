"""What is OLMo 2's own: norms behind the sublayers, and norms over all heads at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pipeline.engines import taps
from pipeline.evals.check import check
from pipeline.graphs import anatomy, graphfile
from pipeline.models.reference import Reference
from pipeline.types import BASE
from tests.faults import graph, spoil

IDS = np.random.default_rng(0).integers(3, 96, (1, 12))


def test_what_a_sublayer_adds_is_its_output_normed(workdir: Path) -> None:
    """The graph's branches are PyTorch's, and a norm with the sublayer's own name gives them."""
    path = graph(workdir, model_type="olmo2")
    model = graphfile.load(path)
    joins = anatomy.find(model, 2, BASE)
    names = [str(join.branch.producer().name) for join in joins]  # type: ignore[union-attr]
    assert names[:2] == [
        "/layers.0/attention/post_attention_layernorm",
        "/layers.0/mlp/post_feedforward_layernorm",
    ]
    ones, positions = np.ones_like(IDS), np.arange(12)[None]
    _, added, _ = Reference(path.parent).trace(IDS, ones, positions)
    with taps.tapped(path, model, [join.branch for join in joins]) as runner:
        outputs = runner.infer(runner.feeds(IDS), [str(join.branch.name) for join in joins])
    for join in joins:
        expected = added[join.sublayer]
        difference = np.abs(outputs[str(join.branch.name)] - expected).max()
        assert difference < 1e-5 * np.abs(expected).max(), join.sublayer


@pytest.mark.slow
@pytest.mark.parametrize("label", ["q_norm", "k_norm", "post_attention_layernorm"])
def test_a_norm_that_is_missing_fails_the_check(label: str, workdir: Path) -> None:
    path = graph(workdir, model_type="olmo2")
    assert check.check(path).passed

    def without_norm(model: ir.Model) -> None:
        norm = next(n for n in model.graph if str(n.name).endswith(f"layers.1/attention/{label}"))
        assert norm.inputs[0] is not None
        norm.outputs[0].replace_all_uses_with(norm.inputs[0])
        model.graph.remove(norm, safe=True)

    assert not check.check(spoil(path, without_norm)).passed
