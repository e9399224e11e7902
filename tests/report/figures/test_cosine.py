"""Legend: L layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.calib import similarity
from pipeline.models import checkpoint
from pipeline.report import collect, figures
from pipeline.report.figures import cosine
from pipeline.types import UserError
from tests import results, tiny


def test_the_file_has_the_statistics_numbers(calibrated: str) -> None:
    _, svg, table = figures.write(calibrated, "cosine")
    first = svg.read_bytes()
    figures.write(calibrated, "cosine")
    assert svg.read_bytes() == first  # the same numbers, the same file
    statistics, rows = similarity.of_model(calibrated), results.csv_rows(table)
    assert len(rows) == 3 * statistics.layers
    for label, kind in (("layer", "layer"), ("attention", "attn"), ("MLP", "mlp")):
        own = [row for row in rows if row["what"] == label]
        assert [float(row["cosine"]) for row in own] == pytest.approx(list(statistics.cosine(kind)))
        assert [float(row["stderr"]) for row in own] == pytest.approx(list(statistics.cosine_error(kind)))


def test_the_page_has_the_same_numbers(workdir: Path) -> None:
    results.statistics("m", 5)
    collection = collect.collect()
    (chart,) = cosine.charts(collection)
    traces = {t["name"]: t["y"] for t in chart.figure["data"]}
    arrays = collection.statistics[0].similarity
    assert arrays and traces["attention"] == pytest.approx(list(arrays.cosine("attn")))
    assert list(traces) == ["whole layer", "attention", "MLP"]


def test_missing_statistics_name_the_command(workdir: Path) -> None:
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS))
    checkpoint.resolve("models/tiny")
    with pytest.raises(UserError, match="`pipeline calibrate tiny`"):
        figures.write("tiny", "cosine")
