"""Whether a tied head is written beside the embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.gguf import origins
from pipeline.models.gguf.origins import Origin
from pipeline.models.quantisation import blocks
from pipeline.ship import pruned
from pipeline.ship.gguf import heads
from tests.ship.gguf import projects
from tests.tiny_gguf import Kind, Tiny


def opened(workdir: Path, kind: Kind, precision: str) -> tuple[pruned.PrunedModel, Origin]:
    kinds = {"_norm": Kind.F32, "token_embd": kind, "blk": Kind.Q4_0}
    base, _ = projects.from_gguf(workdir, how=Tiny(kinds=kinds), tie_word_embeddings=True)
    model = pruned.read(projects.quantised(base, precision), unchecked=True, in_blocks=True)
    origin = origins.of_checkpoint(model.checkpoint)
    assert isinstance(origin, Origin)
    return model, origin


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0])
def test_blocks_of_the_embedding_are_one_matrix_with_it(
    kind: Kind, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 4 bits are said in 8 by the graph, and are the same numbers."""
    model, origin = opened(workdir, kind, "int4-b32-fp32")
    monkeypatch.setattr(heads, "_CHUNK", 1000)  # several pieces
    assert not heads.is_apart(model, origin)
    assert heads.is_apart(model, None)  # the file's embedding is of another type
    weight = model.blocks["lm_head.weight"]

    class Changed(pruned.QuantisedWeight):
        def blocks(self) -> blocks.Blocks:
            own = super().blocks()
            own = blocks.Blocks(own.values.copy(), own.scales.copy())
            own.scales[-1, -1] *= np.float16(2)
            own.values[-1, -1] = 3
            return own

    other = {**model.blocks, "lm_head.weight": Changed(weight.file, weight.place)}
    assert heads.is_apart(replace(model, blocks=other), origin)


def test_a_graph_that_reads_the_embedding_has_no_other_head(workdir: Path) -> None:
    model, _ = opened(workdir, Kind.F16, "int4-b32-fp16")
    assert "lm_head.weight" not in model.blocks and not heads.is_apart(model, None)


def test_a_head_that_was_apart_before_is_no_copy(workdir: Path) -> None:
    graph = projects.quantised(projects.base(workdir, tie_word_embeddings=False), "int4-b32-fp32")
    assert not heads.is_apart(pruned.read(graph, unchecked=True, in_blocks=True), None)
