from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline import store
from pipeline.engines import opening
from pipeline.graphs import export, merge, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet, UserError
from tests import tiny

NAMES = ["attn3", "attn2-3", "mlp1", "block2-3", "attn0", "block0-3"]


@pytest.mark.parametrize("model_type", ["llama", "phi"])
def test_merged_outputs_are_bit_identical_and_caches_shared(model_type: str, workdir: Path) -> None:
    found = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type, num_hidden_layers=4)))
    base = export.export_base(found)
    graphs = [base, *(variants.cut(base, SkipSet.parse(name)) for name in NAMES)]
    path = merge.merge(graphs)
    onnx.checker.check_model(str(path), full_check=True)
    nodes = lambda p: len(onnx.load(str(p), load_external_data=False).graph.node)  # noqa: E731
    assert nodes(path) < 0.75 * sum(map(nodes, graphs))

    rng = np.random.default_rng(0)
    ids, more = rng.integers(3, 96, (2, 7)), rng.integers(3, 96, (2, 1))
    with opening.open_runner(path) as merged:
        first = merged.infer(merged.feeds(ids))
        cache = {
            k.replace("present.", "past_key_values."): v for k, v in first.items() if k.startswith("present.")
        }
        assert set(cache) == {k for k in merged.inputs if k.startswith("past_")}
        second = merged.infer(merged.feeds(more, cache))
    assert (
        "past_key_values.0.key" in cache and "past_key_values.0.key.mlp1" not in cache
    )  # layer 0 is below the fork
    assert "past_key_values.3.key.mlp1" in cache  # and layer 3 above it
    for graph in graphs:
        name = store.graph_sidecar(graph).variant
        with opening.open_runner(graph) as runner:
            logits, own = runner.forward(ids)
            np.testing.assert_array_equal(first[f"logits.{name}"], logits)
            logits, _ = runner.forward(more, own)
            np.testing.assert_array_equal(second[f"logits.{name}"], logits)


def test_merging_needs_one_base(workdir: Path) -> None:
    first = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "one"))))
    second = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "two", seed=1))))
    half = export.export_base(checkpoint.resolve("one"), "fp16")
    with pytest.raises(UserError, match="differ in model"):
        merge.merge([first, second])
    with pytest.raises(UserError, match="differ in precision"):
        merge.merge([first, half])
    with pytest.raises(UserError, match="at least two"):
        merge.merge([first, first])
