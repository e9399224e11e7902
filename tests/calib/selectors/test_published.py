"""The rule that takes a published set."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.calib import selectors
from pipeline.types import SkipSet, UserError
from tests import published, tiny
from tests.known_statistics import chosen

NONE = selectors.ModelStatistics()


def test_the_set_of_a_kind_and_a_count(workdir: Path) -> None:
    published.write(workdir)
    choice = chosen("published", "mlp", 1, 4, statistics=NONE, model="made-up/tiny")
    assert choice == selectors.Choice(
        SkipSet(mlp=(2,)), "thrown dice", note="A paper (Nobody 2026): Table 1; https://example.org/paper"
    )
    assert chosen("published", "block", 0, 4, statistics=NONE).skip == SkipSet()


def test_several_none_or_another_model_are_refused(workdir: Path) -> None:
    published.write(workdir)
    with pytest.raises(UserError, match="name one with --set: dice-block2, coin-block2"):
        chosen("published", "block", 2, 4, statistics=NONE, model="made-up/tiny")
    with pytest.raises(UserError, match="no set attn 2 of made-up/tiny"):
        chosen("published", "attn", 2, 4, statistics=NONE, model="made-up/tiny")
    with pytest.raises(UserError, match="of 4 layers, and this model has 6"):
        chosen("published", "mlp", 1, 6, statistics=NONE, model="made-up/tiny")
    with pytest.raises(UserError, match="no published skip set of 'this model' is known"):
        chosen("published", "mlp", 1, 4, statistics=NONE)


def test_the_checkpoints_folder_says_the_model(workdir: Path) -> None:
    published.write(workdir)
    folder = tiny.checkpoint(workdir / "m", num_hidden_layers=4)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"_name_or_path": "made-up/tiny",', 1))
    statistics = selectors.ModelStatistics(folder)
    assert chosen("published", "mlp", 1, 4, statistics=statistics).skip.name == "mlp2"
