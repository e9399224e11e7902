"""Rows of a proof: whose numbers stand in which."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from runs.gpu import results, shapes
from runs.gpu.rows import CheckRow, DemoRow, EngineRow, LoadRow, TextRow
from tests.runs.gpu.played import GPU, NO_GPU, played


@pytest.mark.parametrize(
    ("shape", "variant", "length", "saved"),
    [
        ("7b", "attn21-31", 50, 21.47),
        ("7b", "attn24-31", 50, 15.61),
        ("7b", "mlp21-31", 50, 6.95),
        ("7b", "mlp24-31", 50, 8.30),
        ("7b", "attn21-31", 100, 18.18),
        ("7b", "base", 50, None),
        ("7b", "attn24-31", 60, None),
        ("13b", "attn30-39", 50, None),  # the paper timed 7B alone
        ("tiny", "attn6-7", 50, None),
    ],
)
def test_the_papers_numbers(shape: str, variant: str, length: int, saved: float | None) -> None:
    """Tyukin et al. 2024, tables 7 and 9."""
    assert results.paper_saved(shapes.find(shape), variant, length) == saved


def test_rows_of_checks() -> None:
    rows = results.findings(played(GPU)).checks
    assert rows[0] == CheckRow("base", "onnxruntime", True, 0.001, 0.002, 1.0, "a GPU", "")
    runtimes = [row.runtime for row in rows]
    assert runtimes == ["onnxruntime"] * 5 + ["tensorrt"] * 5 + [
        "tensorrt, static cache",
        *["tensorrt, int4"] * 2,
    ]


def test_rows_of_times() -> None:
    rows = results.findings(played(GPU)).times
    assert len(rows) == 5 * 3 * 2 + 2 * 3 and all(row.is_checked for row in rows)
    (row,) = (
        one
        for one in rows
        if (one.variant, one.length, one.is_decode, one.runtime) == ("attn21-31", 50, False, "onnxruntime")
    )
    assert (row.ms, row.saved, row.low, row.high, row.ceiling) == (8.0, 20.0, 18.0, 22.0, 20.0)
    assert (row.torch_ms, row.torch_saved, row.paper_saved) == (20.0, 50.0, 21.47)
    assert (row.engine_ms, row.engine_saved, row.eager_ms, row.eager_saved) == (7.0, 8.0, 30.0, 21.0)
    steps = [one for one in rows if one.is_decode and "int4" not in one.runtime]
    assert len(steps) == 10 and {(one.engine_ms, one.paper_saved, one.length) for one in steps} == {
        (6.0, None, 100)
    }


def test_weights_of_4_bits_are_compared_with_the_base_in_fp16() -> None:
    """And with nothing that the paper or `predict` says: both are of fp16."""
    rows = [one for one in results.findings(played(GPU)).times if one.runtime == "tensorrt, int4"]
    found = [
        (one.variant, one.length, one.is_decode, one.saved, one.low, one.high, one.ceiling) for one in rows
    ]
    assert found == [
        ("base", 50, False, 61.0, 60.0, 65.0, None),
        ("attn21-31", 50, False, 62.0, 60.0, 65.0, None),
        ("base", 100, False, 61.0, 60.0, 65.0, None),
        ("attn21-31", 100, False, 62.0, 60.0, 65.0, None),
        ("base", 100, True, 61.0, 60.0, 65.0, 70.0),
        ("attn21-31", 100, True, 62.0, 60.0, 65.0, 70.0),
    ]
    assert {(one.paper_saved, one.engine_ms, one.eager_ms, one.is_base) for one in rows} == {
        (None, None, None, False)
    }


def test_rows_of_engines(tmp_path: Path) -> None:
    plan = tmp_path / "engines/model/base/tensorrt-sm80-int4-fp16.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(bytes(1_500_000))
    failing = frozenset({"build mlp24-31"})
    rows = results.findings(played(GPU, failing=failing, folder=tmp_path)).engines
    runtimes = ["tensorrt"] * 4 + ["tensorrt, static cache"] + ["tensorrt, int4"] * 2
    assert [one.runtime for one in rows] == runtimes
    assert rows[-2] == EngineRow("base", "tensorrt, int4", 1.5, 41.5, 2500, 9)
    assert rows[-1].variant == "attn21-31" and rows[-1].plan_mb is None


def test_a_base_that_was_timed_four_times_has_one_row() -> None:
    rows = results.findings(played(dataclasses.replace(GPU, device_bytes=60e9))).times
    names = [row.variant for row in rows if row.length == 50 and row.runtime == "onnxruntime"]
    assert sorted(names) == sorted(["base", *shapes.find("7b").variants])


def test_what_had_not_passed_is_marked() -> None:
    rows = results.findings(played(GPU, failing=frozenset({"check base"}))).times
    assert {row.runtime: row.is_checked for row in rows} == {
        "onnxruntime": False,
        "tensorrt": True,
        "tensorrt, int4": True,
    }


def test_how_the_gpu_ran_it() -> None:
    found = results.findings(played(GPU))
    base, first = found.times[0], found.times[1]
    assert (base.device_mb, base.attention, base.on_host) == (900.0, "Flash | split", "")
    assert first.on_host == "2 MatMul"
    assert {(one.length, one.is_disturbed) for one in found.times} == {(50, False), (100, True)}
    assert found.loads[:2] == (
        LoadRow("bench graphs", 50, "1400 MHz (1395 to 1410) of 1410", ""),
        LoadRow("bench graphs", 100, "1400 MHz (1395 to 1410) of 1410", "it was slowed by heat"),
    )


def test_texts() -> None:
    found = results.findings(played(GPU))
    assert found.texts[0] == TextRow("base", "onnxruntime", 3, 9.0, 8.0, 6.0)
    assert [row.runtime for row in found.texts[3:]] == ["tensorrt", "tensorrt, static cache"]
    assert found.demo == (
        DemoRow("cuda", "Paris | a city", True),
        DemoRow("cpu", "Paris | a city", None),
    )


def test_a_rehearsal_has_no_rows_of_engines() -> None:
    found = results.findings(played(NO_GPU))
    runtimes = {row.runtime for row in (*found.checks, *found.times, *found.texts)}
    assert runtimes == {"onnxruntime"} and [row.provider for row in found.demo] == ["cpu"]
