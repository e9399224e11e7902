"""Legend: L layers, n size of a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.calib import similarity
from pipeline.report import collect, figures
from pipeline.report.figures import angular
from tests import results


def test_one_curve_for_each_size_and_its_nearest_block() -> None:
    distances = np.array([[0, 0.1, 0.4, 0.3], [0, 0, 0.2, 0.4], [0, 0, 0, 0.1], [0, 0, 0, 0]])
    one, two = angular.curves(distances)
    assert (one.size, one.values, one.nearest) == (1, (0.1, 0.2, 0.1), 2)  # of equals the deepest
    assert (two.size, two.values, two.nearest) == (2, (0.4, 0.4), 1)


def test_the_file_has_every_block(calibrated: str) -> None:
    _, _, table = figures.write(calibrated, "angular")
    distances, rows = similarity.of_model(calibrated).distances(), results.csv_rows(table)
    layers = len(distances) - 1
    assert len(rows) == sum(layers - n + 1 for n in range(1, layers))
    for row in rows:
        first, n = int(row["l"]), int(row["n"])
        assert float(row["d"]) == pytest.approx(distances[first, first + n])
    assert [int(row["n"]) for row in rows if row["is_best"] == "True"] == list(range(1, layers))


def test_the_page_has_a_curve_or_a_gap(workdir: Path) -> None:
    results.statistics("m", 5)
    (chart,) = angular.charts(collect.collect())
    assert [(t["name"], len(t["x"])) for t in chart.figure["data"]] == [
        (f"n = {n}", 6 - n) for n in range(1, 5)
    ]
    Path("calib/m/similarity.npz").unlink()
    (gap,) = angular.charts(collect.collect())
    assert gap.figure["data"] == [] and gap.gap and "pipeline calibrate m" in gap.gap
