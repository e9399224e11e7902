"""A variant whose name is longer than a file's may be goes through every stage: 40 + 40 of 80 layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import store
from pipeline.ship.triton import repository
from pipeline.types import SkipSet
from tests import tiny
from tests.commands import run

SKIP = SkipSet(tuple(range(0, 80, 2)), tuple(range(1, 80, 2)))
OTHER = SkipSet(SKIP.attention, (*SKIP.mlp[:-1], 78))
"""It differs in its last letters."""


@pytest.mark.slow
def test_through_every_stage(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.tokenizer(tiny.checkpoint(Path("models/deep"), num_hidden_layers=80, vocab_size=512))
    graphs = [
        Path(run(capsys, "export", "models/deep", "--skip", skip.name).strip().splitlines()[-1])
        for skip in (SKIP, OTHER)
    ]
    assert graphs[0] != graphs[1] and [store.variant(graph).skip for graph in graphs] == [SKIP, OTHER]
    graph = graphs[0]
    run(capsys, "export", "models/deep")
    run(capsys, "check", "graphs/deep/base.fp32.onnx")
    run(capsys, "check", graph)
    run(capsys, "bench", graph, "--sequences", 12, "--lengths", 20)
    assert SKIP.name in run(capsys, "show", graph)
    assert f"{graph} " in run(capsys, "list")
    run(capsys, "report")
    assert SKIP.name in Path("evals/report/index.html").read_text()
    run(capsys, "ship", graph, "--to", "triton", "repo")
    record = repository.read(Path("repo"))
    repository.verify(Path("repo"), record)
    assert [version.variant for _, version in repository.newest(record).values()] == [SKIP.name]
