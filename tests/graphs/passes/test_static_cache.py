"""The graph with a static cache beside the one whose cache grows, in ONNX Runtime.

What a static cache holds behind its tokens is drawn here, large: nothing may come of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_ir.passes import InvariantError

from pipeline.engines import lint, opening
from pipeline.graphs import export, graphfile, variants
from pipeline.graphs.passes.static_cache import StaticCachePass
from pipeline.models import checkpoint
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.runtime.runner import Array
from pipeline.types import Precision, SkipSet, UserError
from tests import overlays, tiny

PLACES, PROMPT, PADDING = 288, 9, 3


def base(workdir: Path, model_type: str = "llama", precision: Precision = "fp32", **changes: int) -> Path:
    folder = tiny.checkpoint(workdir / "source" / model_type, model_type, **changes)
    return export.export_base(checkpoint.resolve(str(folder)), precision)


def variant(graph: Path, name: str) -> Path:
    skip, _, form = name.partition("~")
    chosen = SkipSet.parse(skip)
    if form:
        overlay = overlays.of_form(graph.parent, chosen, form)
        return variants.compensate(graph, chosen, overlay, form)
    return variants.cut(graph, chosen)


def draw(path: Path, rows: int, places: int = PLACES) -> dict[str, Array]:
    """Caches full of numbers that nobody wrote."""
    rng = np.random.default_rng(7)
    with opening.open_runner(path) as runner:
        shapes = runner.cache_shapes().items()
    return {
        name: (30 * rng.normal(size=(rows, heads, places, dim))).astype(dtype)
        for name, (heads, dim, dtype) in shapes
    }


def error(result: Array, expected: Array) -> float:
    return float(np.abs(result - expected).max() / np.sqrt(np.mean(np.square(expected, dtype=np.float64))))


def worst_error(grows: Path, pieces: Sequence[int], places: int = PLACES) -> float:
    """Of all logits and of the last cache, over a prompt padded in one row and pieces of so many tokens."""
    static = variants.cut_static(grows, places)
    rng, total, worst = np.random.default_rng(0), PROMPT + sum(pieces), 0.0
    ids, mask = rng.integers(3, 96, (2, total)), np.ones((2, places), np.int64)
    mask[0, :PADDING] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    pasts, cache, done = draw(static, 2, places), None, 0
    with opening.open_runner(grows) as usual, opening.open_runner(static) as fixed:
        for new in (PROMPT, *pieces):
            seen = slice(done, done + new)
            wanted = np.tile(np.arange(new), (2, 1)) if done else np.full((2, 1), new - 1)
            common = {"position_ids": positions[:, seen], "logits_positions": wanted}
            expected, cache = usual.forward(
                ids[:, seen], cache, attention_mask=mask[:, : done + new], **common
            )
            feeds = {"input_ids": ids[:, seen], "attention_mask": mask, "write_indices": np.full(2, done)}
            outputs = fixed.infer({**feeds, **common, **pasts})
            worst = max(worst, error(outputs["logits"], expected))
            pasts = {name: outputs[name.replace("past_key_values", "present")] for name in pasts}
            done += new
    assert cache is not None
    for name, array in cache.arrays().items():
        tokens = array[:, :, PADDING:], pasts[name][:, :, PADDING:done]
        worst = max(worst, error(tokens[1], tokens[0]))
    return worst


@pytest.mark.parametrize(
    "name", ["base", "attn1", "mlp0", "block0", "attn0+mlp1", "mlp0~linear", "attn1~linear", "block1~linear"]
)
def test_256_steps_are_those_of_the_usual_form(name: str, workdir: Path) -> None:
    grows = variant(base(workdir, max_position_embeddings=512), name)
    assert worst_error(grows, [1] * 256) < 1e-4


@pytest.mark.parametrize("model_type", sorted(tiny.DIALECTS))
def test_every_architecture_in_pieces(model_type: str, workdir: Path) -> None:
    """Pieces of several tokens, which cross the windows of those that have some."""
    assert worst_error(base(workdir, model_type), [5, 1, 12, 1, 1, 7, 1], 200) < 1e-4


def test_fp16(workdir: Path) -> None:
    assert worst_error(base(workdir, precision="fp16", max_position_embeddings=512), [1, 6, 1]) < 0.05


def test_rows_of_different_lengths_need_no_padding(workdir: Path) -> None:
    """Each row is written behind its own tokens, and sees those alone."""
    grows = base(workdir, max_position_embeddings=512)
    static = variants.cut_static(grows, PLACES)
    rng, lengths, pasts = np.random.default_rng(3), np.array([4, 11]), draw(static, 2)
    ids = rng.integers(3, 96, (2, 12))
    common = {
        "attention_mask": np.ones((2, PLACES), np.int64),
        "logits_positions": np.zeros((2, 1), np.int64),
    }
    with opening.open_runner(grows) as usual, opening.open_runner(static) as fixed:
        for row, length in enumerate(lengths):
            _, cache = usual.forward(ids[row : row + 1, :length])
            for name, array in cache.arrays().items():
                pasts[name][row, :, :length] = array[0]
        tokens = ids[[0, 1], lengths][:, None]
        outputs = fixed.infer(
            {
                "input_ids": tokens,
                "position_ids": lengths[:, None],
                "write_indices": lengths,
                **common,
                **pasts,
            }
        )
        for row, length in enumerate(lengths):
            alone, _ = usual.forward(ids[row : row + 1, : length + 1])
            assert error(outputs["logits"][row], alone[0]) < 1e-4


def test_texts_that_join_and_leave_a_batch_are_the_same(workdir: Path) -> None:
    """Through the opaque cache, which the runner widens and cuts: joined, cut and padded as any other."""
    grows, prompts = base(workdir), [[5, 6, 7], [8, 9] * 6, [4], [3, 11]]
    texts = []
    for path in (grows, variants.cut_static(grows, 128)):
        with opening.open_runner(path) as runner:
            rows = greedy_batch(runner, prompts, 12, lambda tokens: len(tokens) == tokens[0] % 5 + 6, rows=2)
            texts.append({row.number: row.tokens for row in rows})
    assert texts[0] == texts[1] and len(texts[0]) == 4 and all(texts[0].values())


def test_the_graph_is_sound_and_of_the_form(workdir: Path) -> None:
    grows = base(workdir, head_dim=16)
    model = graphfile.load(grows)
    before = {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
    StaticCachePass(200)(model)
    after = {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
    assert after.pop("write_indices") == "[batch]" and after.pop("attention_mask") == "[batch,200]"
    caches = [name for name in before if "key" in name or "value" in name]
    assert len(caches) == 8 and {after.pop(name) for name in caches} == {"[batch,2,200,16]"}
    assert after == {name: before[name] for name in after}
    assert [node.op_type for node in model.graph].count("TensorScatter") == 4
    assert not any(node.op_type in ("Concat", "Sub") for node in model.graph)
    assert model.graph.opset_imports[""] == 24 and lint.lint(model) == []
    path = variants.cut_static(grows, 200)
    onnx.checker.check_model(str(path), full_check=True)


def test_what_has_no_cache_or_another_form_is_refused(workdir: Path) -> None:
    grows = base(workdir)
    with pytest.raises(UserError, match="no attention left and so no cache"):
        variants.cut_static(variants.cut(grows, SkipSet.of("attn", range(2))), 200)
    with pytest.raises(UserError, match="does not exist; `pipeline list`"):
        variants.cut_static(grows.with_name("other.onnx"), 200)
    model = graphfile.load(grows)
    StaticCachePass(200)(model)
    with pytest.raises(InvariantError) as caught:
        StaticCachePass(200)(model)
    assert "not just read by a Concat" in str(caught.value.__cause__)
