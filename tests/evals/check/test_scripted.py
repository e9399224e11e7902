"""The feeds of the script, and the outputs that both sides give for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.engines import opening
from pipeline.evals.check import scripted
from pipeline.models.reference import Reference
from pipeline.types import SkipSet
from tests.faults import graph


def test_feeds_pad_as_they_say() -> None:
    left, right = scripted.feeds(np.arange(1, 6 * 20 + 1).reshape(6, 20), (1, 5, 12))[-2:]
    for feed in (left, right):
        assert feed.input_ids.shape == (3, 20) and feed.attention_mask[:, 12:].all()
        assert (feed.attention_mask.sum(1) == [9, 13, 20]).all()
        for b in range(3):  # the same tokens in the same order, positions that count them
            kept = feed.attention_mask[b] == 1
            assert (feed.input_ids[b, kept] == left.input_ids[b, left.attention_mask[b] == 1]).all()
            assert (feed.position_ids[b, kept] == np.arange(kept.sum())).all()
    assert left.attention_mask[0, :11].sum() == 0 and left.attention_mask[0, 11] == 1
    assert right.attention_mask[0, 0] == 1 and right.attention_mask[0, 1:12].sum() == 0
    for feed in (left, right):
        wanted = scripted.wanted_positions(feed.attention_mask[:, :12])
        assert wanted.shape == (3, 8) and np.take_along_axis(feed.attention_mask, wanted, axis=1).all()
        assert (wanted[:, -1] == [np.flatnonzero(row[:12])[-1] for row in feed.attention_mask]).all()


def test_both_sides_give_the_same_outputs(workdir: Path) -> None:
    """`play` on the graph, `recompute` in PyTorch: names, shapes, values; skipped attention has no cache."""
    path = graph(workdir, "attn0")
    tokens = np.random.default_rng(0).integers(3, 96, (4, 20))
    feed = scripted.feeds(tokens, (5, 12))[-1]
    with opening.open_runner(path) as runner:
        played = scripted.play(runner, feed.arrays)
    expected = scripted.recompute(Reference(path.parent, SkipSet((0,)), "fp32"), feed.arrays)
    assert {name: value.shape for name, value in played.items()} == {
        "prefill/logits": (2, 8, 96),
        "decode/logits": (2, scripted.STEPS, 96),
        "present.1.key": (5 + 12 + 2 * scripted.STEPS, 2, 32),
        "present.1.value": (5 + 12 + 2 * scripted.STEPS, 2, 32),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(played[name], value, atol=1e-4, err_msg=name)


def test_polygraphy_runners_give_what_they_play(workdir: Path) -> None:
    path = graph(workdir)
    feed = scripted.feeds(np.full((2, 12), 5), (4,))[0]
    with scripted.ArtefactRunner(lambda: opening.open_runner(path), "base") as runner:
        outputs = runner.infer(feed.arrays)
        assert runner.last_inference_time() > 0
    with scripted.TorchRunner(path.parent, SkipSet(), "fp32") as torch:
        reference = torch.infer(feed.arrays)
    assert runner.name == "base" and torch.name == "torch-fp32" and set(outputs) == set(reference)
    np.testing.assert_allclose(outputs["decode/logits"], reference["decode/logits"], atol=1e-4)
