"""Statistics on disk: whose they are, whether they are whole, and how they are shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline import store
from pipeline.calib import measures, similarity
from pipeline.types import UserError
from tests import tiny

LAYERS = 3


def written(folder: Path) -> measures.Sums:
    """Statistics of two sequences of noise, in calib/<model>."""
    sums, rng = measures.Sums(), np.random.default_rng(0)
    for _ in range(2):
        streams = np.cumsum(rng.normal(size=(LAYERS + 1, 8, 16)), axis=0)
        sums.add(measures.measure(streams, (streams[:-1] + streams[1:]) / 2, 2))
    similarity.write(folder, tiny.similarity_request(), sums)
    return sums


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sums = written(tmp_path)
    statistics = similarity.read(tmp_path, "abc")
    for name in measures.MEASURES:
        np.testing.assert_array_equal(statistics.mean[name], sums.mean(name))
        np.testing.assert_array_equal(statistics.stderr[name], sums.stderr(name))
    assert statistics.layers == LAYERS and statistics.record.samples == 2
    assert statistics.record.cosine_attn == pytest.approx(list(statistics.cosine("attn")))
    np.testing.assert_array_equal(statistics.distances(), sums.mean("angular"))
    np.testing.assert_allclose(statistics.distances("mean"), sums.mean("angular_mean").mean(0))


def test_statistics_that_are_not_these_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    with pytest.raises(UserError, match="make them with `pipeline calibrate 'my model'`"):
        similarity.read(folder, "abc")
    written(folder)
    with pytest.raises(UserError, match="other weights"):
        similarity.read(folder, "other")
    json_path, npz_path = similarity.paths(folder)
    npz_path.write_bytes(npz_path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not what similarity\.json describes"):
        similarity.read(folder, "abc")
    record = json.loads(json_path.read_text())
    json_path.write_text(json.dumps({**record, "cosine_attn": [float("nan")]}))
    with pytest.raises(UserError, match=r"is not a valid record at 'cosine_attn\.0'"):
        similarity.read(folder, "abc")


def test_statistics_of_other_weights_of_the_same_name_are_refused(workdir: Path) -> None:
    folder = tiny.checkpoint(workdir / "graphs" / "tiny")
    written(store.Project().calib("tiny"))
    with pytest.raises(UserError, match="other weights"):
        similarity.of_model("tiny")
    with pytest.raises(UserError, match="other weights"):
        similarity.of_checkpoint(folder)


def test_block_curves_scale_each_size_from_0_to_1() -> None:
    distances = np.abs(np.subtract.outer([0.0, 1.0, 4.0, 6.0], [0.0, 1.0, 4.0, 6.0]))
    curves = similarity.block_curves(distances)
    np.testing.assert_allclose(curves, [[0, 1, 0.5], [0, 1, np.nan]])
    assert not similarity.block_curves(np.zeros((3, 3)))[0].any()  # all equal: no division by nothing


def test_the_table_has_a_row_a_layer_and_a_column_a_bucket(tmp_path: Path) -> None:
    written(tmp_path)
    out = io.StringIO()
    Console(file=out, width=150).print(similarity.table("tiny", similarity.read(tmp_path, "abc")))
    text = out.getvalue()
    assert "tokens 0-3" in text and "tokens 4-7" in text and "2 sequences of 8 tokens" in text
    assert sum(line.strip("│ ").split(" ")[0] in ("0", "1", "2") for line in text.splitlines()) == LAYERS
