"""Scores of the real model: beside lm-eval's `hf` backend, and on the project's own small benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evals.score.harness import PipelineLM
from pipeline.evals.score.score import ScoreSettings, score
from pipeline.graphs import export, merge, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet
from tests import parity
from tests.scoring import DATA, needs_data

pytestmark = pytest.mark.slow


@pytest.fixture
def base(demo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SmolLM2's base graph in the shared project root; nothing that these tests write is read again."""
    monkeypatch.chdir(demo_root)
    return export.export_base(checkpoint.resolve("demo"))


@needs_data
def test_answers_are_the_hf_backends(base: Path) -> None:
    """`make parity` on a few documents."""
    reference, ours = parity.hf(base.parent), PipelineLM(base, unchecked=True, journal=False)
    for name, limit in (("arc", 1), ("hellaswag", 1), ("truthfulqa", 1), ("mmlu_anatomy", 1), ("boolq", 2)):
        result = parity.compare(ours, reference, name, DATA, limit)
        assert result.holds, result
    assert parity.compare_rolling(ours, reference, DATA, 1).holds
    assert parity.compare_texts(ours, reference, DATA, 2, tokens=16).holds
    # the tokenizer as published: no BOS, digits one by one
    assert ours.tok_encode("In 2024") == reference.tok_encode("In 2024") and len(ours.tok_encode("2024")) == 4
    assert ours.tok_encode("In")[0] != ours.prefix_token_id


def test_smoke_tells_the_base_from_chance_and_from_a_third_less(base: Path) -> None:
    """The benchmark of a fresh machine without network: well above chance, and base > block-33 %."""
    graphs = [base, variants.cut(base, SkipSet.of("block", range(20, 30)))]
    settings = ScoreSettings(unchecked=True, fresh=True)
    whole, cut = score(graphs, ["smoke"], settings, merged=merge.merge(graphs))
    assert whole.stderr is not None and cut.stderr is not None
    chance = (0.25 + 0.25 + 0.5) / 3
    assert whole.value > chance + 4 * whole.stderr
    assert whole.value > cut.value + 3 * (whole.stderr + cut.stderr) / 2
