"""Legend: L layers, n size of a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.calib import similarity
from pipeline.report import collect, figures
from pipeline.report.figures import heatmap
from tests import results


def test_the_file_has_every_block(calibrated: str) -> None:
    _, _, table = figures.write(calibrated, "heatmap")
    rows = results.csv_rows(table)
    values = np.array([float(row["normalised_d"]) for row in rows])
    assert values.min() == 0 and values.max() == 1
    layers = similarity.of_model(calibrated).layers
    assert len(rows) == sum(layers - n + 1 for n in range(1, layers))


def test_the_page_has_each_size_scaled_to_its_own_range(workdir: Path) -> None:
    results.statistics("m", 5)
    collection = collect.collect()
    (chart,) = heatmap.charts(collection)
    z, arrays = chart.figure["data"][0]["z"], collection.statistics[0].similarity
    assert arrays is not None
    d = arrays.distances()
    ends = [d[i, i + 2] for i in range(4)]
    scaled = [(v - min(ends)) / (max(ends) - min(ends)) for v in ends]
    assert z[1] == [*(pytest.approx(v, abs=1e-4) for v in scaled), None]
    assert chart.figure["data"][0]["y"] == [1, 2, 3, 4]
