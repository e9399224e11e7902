from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report import collect
from pipeline.report.figures import ceiling
from tests import results


def test_what_was_saved_against_what_can_be(workdir: Path) -> None:
    results.bench("m", "base", 0.0)
    results.bench("m", "attn24-31", 8.0, lengths=(50,))
    results.bench("m", "mlp24-31", 18.0, lengths=(50,), kind="torch")
    (chart,) = ceiling.charts(collect.collect())
    points, line = chart.figure["data"]
    assert (points["x"], points["y"], points["error_y"]["array"]) == ([8.5], [8], [1])
    words = "m attn24-31.fp32, prefill of 50 tokens: 8.0 % saved [7.0, 9.0], ceiling 8.5 %"
    assert points["text"] == [words]
    assert line["x"] == line["y"] == [0, pytest.approx(9.35)]


def test_a_base_alone_is_a_gap(workdir: Path) -> None:
    results.bench("m", "base", 0.0)
    (chart,) = ceiling.charts(collect.collect())
    assert chart.gap == "not run: needs `pipeline bench` of a variant" and chart.figure["data"] == []
