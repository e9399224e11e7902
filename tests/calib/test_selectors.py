"""What all rules have in common: their edges, equal values, and what is said where statistics lack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.calib import selectors
from pipeline.models import texts
from pipeline.types import SkipSet, UserError
from tests.known_statistics import L, chosen

NEED_STATISTICS = ("angular", "cosine", "evo", "greedy", "greedy-linear", "joint", "residual")


RULES = [name for name in selectors.names() if name != "published"]
"""Those that choose for any model."""


@pytest.mark.parametrize("name", RULES)
def test_edges(name: str) -> None:
    kind = "block"
    assert chosen(name, kind, 0).skip == SkipSet()
    if name == "last-but-final":
        with pytest.raises(UserError, match="keeps the final layer"):
            chosen(name, kind, L)
        assert chosen(name, kind, 0, layers=1).skip == SkipSet()
    elif name == "joint":
        assert len(chosen(name, kind, L).skip.attention + chosen(name, kind, L).skip.mlp) == L
    else:
        assert chosen(name, kind, L).skip == SkipSet.of(kind, range(L))
    with pytest.raises(UserError, match="does not fit"):
        chosen(name, kind, L + 1)
    with pytest.raises(UserError, match="not a kind"):
        chosen(name, "norm", 1)


@pytest.mark.parametrize("name", NEED_STATISTICS)
def test_without_statistics_the_command_is_named(name: str, workdir: Path) -> None:
    with pytest.raises(UserError, match="name the model"):
        chosen(name, "block", 1, statistics=selectors.ModelStatistics())
    if name in ("angular", "joint"):
        with pytest.raises(UserError, match="take --kind block"):
            chosen(name, "attn", 1)
    with pytest.raises(UserError, match="no selector 'best'; choose from angular, cosine"):
        chosen("best", "block", 1)


def test_rules_that_need_no_statistics_read_none() -> None:
    for name in set(RULES) - set(NEED_STATISTICS):
        assert chosen(name, "mlp", 2, statistics=selectors.ModelStatistics()).skip.mlp


def test_the_statistics_of_a_model_that_has_none_are_measured(workdir: Path) -> None:
    from pipeline.calib import calibrate
    from tests import tiny

    folder = tiny.tokenizer(tiny.checkpoint(workdir / "graphs" / "m", vocab_size=tiny.WORDS))
    statistics = selectors.ModelStatistics(folder, samples=3, length=16)
    settings = calibrate.CalibrationSettings(3, 16)
    written = Path("calib/m/similarity.json")
    chosen("cosine", "mlp", 1, statistics=statistics)
    before = written.read_bytes()
    calibrate.calibrate(folder, texts.OWN, settings)  # the same, so nothing is measured
    assert written.read_bytes() == before and statistics.similarity.record.samples == 3
    with pytest.raises(UserError, match="final or mean"):
        selectors.ModelStatistics(folder, tokens="first")


def test_statistics_of_other_weights_say_the_command(workdir: Path) -> None:
    from tests import tiny

    folder = tiny.tokenizer(tiny.checkpoint(workdir / "graphs" / "my model", vocab_size=tiny.WORDS))
    chosen("cosine", "mlp", 1, statistics=selectors.ModelStatistics(folder, samples=3, length=16))
    shutil.rmtree(folder)
    tiny.tokenizer(tiny.checkpoint(folder, vocab_size=tiny.WORDS, seed=1))
    with pytest.raises(UserError, match="measure again with `pipeline calibrate 'my model'`"):
        chosen("cosine", "mlp", 1, statistics=selectors.ModelStatistics(folder))


def test_of_equal_values_the_deeper_goes() -> None:
    choice = selectors.by_rank("any", {"attn0": 0.5, "mlp3": 0.5, "attn3": 0.5, "mlp1": 0.9}, 2)
    assert choice.skip == SkipSet((3,), (1,))
    assert [name for name, _ in choice.chosen + choice.stays] == ["mlp1", "attn3", "mlp3", "attn0"]
