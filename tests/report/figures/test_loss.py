from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report import figures
from pipeline.report.figures import loss
from pipeline.store import Project
from pipeline.types import UserError
from tests.results import config, csv_rows, healed_grid, score


def test_losses_of_blocks_healed_or_not(workdir: Path) -> None:
    healed_grid("m")
    score("m", "attn24-31", "c4-loss", 0.9)
    score("m", "block24-31", "c4-loss", 0.8, precision="fp16")
    score("m", "base", "other-loss", 0.1)
    png, _, table = figures.write("m", "loss")
    assert png.is_file()
    numbers = [(r["variant"], float(r["percent"]), float(r["loss_over_log_v"])) for r in csv_rows(table)]
    assert numbers == [("base", 0, 0.3), ("block24-31", 25, 0.6), ("block24-31~heal", 25, 0.4)]
    assert [r["healed"] for r in csv_rows(table)] == ["False", "False", "True"]


def test_losses_of_compensated_blocks_are_a_series_of_their_own(workdir: Path) -> None:
    healed_grid("m")
    score("m", "block24-31~linear", "c4-loss", 0.45)
    score("m", "block24-31~linear~heal", "c4-loss", 0.35)
    drawing = loss.draw("m", Project())
    labels = [line.get_label() for line in drawing.figure.axes[0].lines]
    for how in ("not healed", "healed", "linear", "linear, healed"):
        assert f"{how} (best of each size)" in labels
    assert [row[-2:] for row in drawing.rows] == [
        (False, ""), (False, ""), (True, ""), (False, "linear"), (True, "linear"),
    ]  # fmt: skip


def test_a_line_joins_the_best_of_each_size(workdir: Path) -> None:
    config("m", 4)
    for variant, value in (("base", 0.3), ("block3", 0.5), ("block2", 0.4)):
        score("m", variant, "c4-loss", value)
    plot = loss.draw("m", Project()).figure.axes[0]
    line = next(line for line in plot.lines if line.get_label() == "not healed (best of each size)")
    assert line.get_xydata().tolist() == [[0, 0.3], [25, 0.4]]


def test_no_loss_names_the_command(workdir: Path) -> None:
    score("m", "base", "arc", 0.5)
    for model, folder in (("m", "m"), ("a model", "'a model'")):
        with pytest.raises(UserError, match=f"pipeline score graphs/{folder}/.* --tasks smoke-loss"):
            figures.write(model, "loss")
