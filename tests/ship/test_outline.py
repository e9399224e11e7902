"""The outline: the same from the variant that is read and from headers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models import checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.ship import outline, pruned
from tests.ship.hf import folders
from tests.ship.hf.test_nemotron_nas import compensated


def test_both_ways_say_the_same(workdir: Path) -> None:
    base = folders.base(workdir, **folders.NAS)
    graphs = [
        base,
        folders.variant(base, "block1"),
        folders.variant(base, "attn1+mlp2", "linear"),
        folders.variant(base, "attn1", "bias"),
        compensated(base, "attn2", "rank4"),
    ]
    outlines = [outline.of_graph(graph) for graph in graphs]
    assert outlines == [outline.of_model(pruned.read(graph, unchecked=True)) for graph in graphs]
    assert [one.whole_blocks for one in outlines] == [True, True, False, False, False]
    assert outlines[2].maps == {MapPlace.parse("attn1"): True, MapPlace.parse("mlp2"): True}
    assert outlines[3].constants == (MapPlace.parse("attn1"),)
    assert outlines[4].maps == {MapPlace.parse("attn2"): False}
    assert outlines[1].kept_layers == (0, 2, 3)


def test_no_weight_is_read(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's data may be anything."""
    graph = folders.variant(folders.base(workdir, **folders.NAS), "attn1")
    monkeypatch.setattr(pruned.StoredTensor, "array", lambda _: pytest.fail("a weight is read"))
    assert outline.of_graph(graph).config == checkpoint.open_checkpoint(graph.parent).config
