"""Figures: three files each, numbers that are those of the statistics, and one clear line where there are none."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.calib import calibrate, similarity
from pipeline.evals.check import check
from pipeline.evals.score import score
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, texts
from pipeline.report import figures
from pipeline.types import SkipSet, UserError
from tests import tiny

LAYERS = 5


@pytest.fixture
def base(workdir: Path) -> Path:
    source = tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=LAYERS)
    tiny.tokenizer(source)
    found = checkpoint.resolve("models/tiny")
    calibrate.calibrate(found.folder, texts.OWN, calibrate.CalibrationSettings(3, 16, 2))
    return export.export_base(found)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["angular", "cosine", "heatmap"])
def test_pictures_and_their_numbers(base: Path, name: str) -> None:
    png, svg, table = figures.write("tiny", name)
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()[:400]
    first = svg.read_bytes()
    figures.write("tiny", name)
    assert svg.read_bytes() == first  # the same numbers, the same file
    told = similarity.of_model("tiny")
    held = rows(table)
    if name == "cosine":
        assert len(held) == 3 * LAYERS
        assert [float(row["cosine"]) for row in held if row["what"] == "MLP"] == pytest.approx(
            list(told.cosine("mlp"))
        )
    else:
        assert len(held) == sum(LAYERS - n + 1 for n in range(1, LAYERS))
    if name == "angular":
        d = told.distances()
        assert all(
            float(row["d"]) == pytest.approx(d[int(row["l"]), int(row["l"]) + int(row["n"])]) for row in held
        )
        assert [int(row["n"]) for row in held if row["is_best"] == "True"] == list(range(1, LAYERS))
    if name == "heatmap":
        values = np.array([float(row["normalised_d"]) for row in held])
        assert values.min() == 0 and values.max() == 1


def test_loss_against_fraction_comes_from_the_results(base: Path) -> None:
    with pytest.raises(UserError, match="--tasks smoke-loss"):
        figures.write("tiny", "loss")
    graphs = [
        base,
        variants.cut(base, SkipSet.parse("block4")),
        variants.cut(base, SkipSet.parse("block3-4")),
    ]
    for graph in graphs:
        assert check.check(graph).passed
    scores = score.score(graphs, ["smoke-loss"], score.ScoreSettings(limit=6))
    held = rows(figures.write("tiny", "loss")[2])
    assert {row["variant"]: float(row["percent"]) for row in held} == {
        "base": 0,
        "block4": 20,
        "block3-4": 40,
    }
    assert {row["variant"]: float(row["loss_over_log_v"]) for row in held} == {
        one.variant: pytest.approx(one.value) for one in scores
    }


def test_what_is_missing_is_said(workdir: Path) -> None:
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS))
    checkpoint.resolve("models/tiny")
    with pytest.raises(UserError, match="`pipeline calibrate tiny`"):
        figures.write("tiny", "cosine")
    with pytest.raises(UserError, match="no figure 'pie'; choose from angular, cosine, heatmap, loss"):
        figures.write("tiny", "pie")
    assert not store.figures_dir("tiny").exists()
