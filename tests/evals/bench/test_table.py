"""The table says what a reader must know, in 100 columns; JSON has everything."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from pipeline.evals.bench.table import BenchReport, short, table
from pipeline.store.records import Conditions, Latency, OverPlain

HOW = Conditions(
    measure="1 token for each sequence (prefill)",
    decode=False,
    sequences=1000,
    batch=1,
    threads=64,
    device="Some Processor of a Long Name @ 3.20GHz (128 cores seen)",
    checked=True,
    foreign_load="recognised",
)


def row(name: str, length: int = 100, **changes: Any) -> Latency:
    fields: dict[str, Any] = {
        "artefact": f"graphs/m/{name}.onnx",
        "name": name,
        "kind": "artefact",
        "length": length,
        "total": 1234.56,
        "p50": 1234.5,
        "p90": 1300.0,
        "p99": 1400.0,
        "improvement": 24.6,
        "interval": (24.0, 25.0),
        "ceiling": 25.1,
        "share": 0.98,
        "above_ceiling": False,
        "clean": 900,
        "enough_clean": True,
        "peak_mb": 123456.0,
        "weight_mb": 100.0,
        "cache_bytes_per_token": 1234567,
    }
    return Latency(**{**fields, **changes})


def printed(report: BenchReport) -> str:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table(report))
    return console.export_text()


def test_large_numbers_fit_100_columns_uncut() -> None:
    name = "attn5-7_9_25-26_28-29+mlp1_3_5_7_9~healed.fp32 (optimum)"
    words = printed(
        BenchReport((row("base.fp32"), row(name, above_ceiling=True, enough_clean=False)), HOW, ())
    )
    assert max(map(len, words.splitlines())) <= 100 and "…" not in words
    for number in ("1234.5", "24.6", "25.1", "98% !", "123456", "1234567"):
        assert number in words


def test_the_demos_longest_name_stays_on_one_line() -> None:
    name = "attn5-7_9_25-26_28-29.fp32"
    words = printed(
        BenchReport((row(name, enough_clean=False, peak_mb=1302, cache_bytes_per_token=33792),), HOW, ())
    )
    assert f" {name} ? " in words


def test_marks_are_explained() -> None:
    plain = printed(BenchReport((row("base.fp32"),), HOW, ()))
    assert (
        "!" not in plain
        and "?" not in plain
        and "unchecked" not in plain
        and "of it: saved / ceiling" in plain
    )
    how = HOW.replaced(checked=False, foreign_load="not measured on this system", ceiling_of="bytes read")
    rows = (row("a.fp32", above_ceiling=True), row("b.fp32", enough_clean=False, ceiling=None, share=None))
    words = " ".join(printed(BenchReport(rows, how, ())).split())
    for expected in ("b.fp32 ?", "98% !", "a bug in the measurement", "bytes read", "do not quote this row"):
        assert expected in words
    assert "unchecked: nothing says" in words and "is not measured on this system" in words


def test_the_byte_ceiling_stands_beside_where_bytes_bind() -> None:
    rows = (row("base.fp32", 10, byte_ceiling=0.0), row("a.fp32", 10, byte_ceiling=22.7), row("a.fp32"))
    report = BenchReport(rows, HOW, ())
    words = printed(report)
    assert max(map(len, words.splitlines())) <= 100 and "bytes %" in words
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in words.splitlines() if "24.6" in line
    ]
    assert [cell[4:7] for cell in cells] == [
        ["25.1", "0.0", "98%"],
        ["25.1", "22.7", "98%"],
        ["25.1", "", "98%"],
    ]
    assert "what the removed bytes allow; where it stands, they bind, not FLOPs" in " ".join(words.split())
    assert "bytes" not in printed(BenchReport((row("a.fp32"),), HOW, ()))
    assert short(BenchReport(rows[:2], HOW, ()))["graphs/m/a.fp32.onnx"] == {
        "saved %\n(ceiling)\nat 10": "24.6 (22.7)"
    }


def test_what_is_saved_of_the_unquantised_base_stands_beside() -> None:
    name = "attn5-7_9_25-26_28-29+mlp1_3_5_7_9~linear.int4-b32-fp32"
    plain = OverPlain(base="base.fp32", improvement=-12.3, interval=(-13.0, -12.0))
    rows = (
        row("base.int4-fp32", over_plain=plain),
        row(name, over_plain=plain, byte_ceiling=33.3),
        row("b.fp32"),
    )
    words = printed(BenchReport(rows, HOW, ()))
    assert max(map(len, words.splitlines())) <= 100 and "…" not in words
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in words.splitlines() if "24.6" in line
    ]
    assert [cell[3:6] for cell in cells] == [["24.6", "-12.3", "25.1"]] * 2 + [["24.6", "", "25.1"]]
    assert "vs base: saved of base.fp32, which has the checkpoint's own weights; " in " ".join(words.split())
    assert "vs base" not in printed(BenchReport(rows[2:], HOW, ()))
    decoded = row("base.int4-fp32", over_plain=plain.replaced(improvement=54.5, ceiling=70.1))
    words = printed(BenchReport((decoded,), HOW.replaced(decode=True), ()))
    assert "54.5 (70.1)" in words and "own weights (what the bytes allow)" in " ".join(words.split())


def test_json_has_everything() -> None:
    plain = BenchReport((row("a.fp32"),), HOW, ()).plain()
    assert plain["rows"][0]["p99"] == 1400.0 and plain["rows"][0]["total"] == 1234.56
    assert plain["conditions"]["sequences"] == 1000 and plain["results"] == []


def test_beside_scores_stands_what_is_saved_at_the_longest_length() -> None:
    rows = (
        row("a.fp32", 50, improvement=1.0),
        row("a.fp32", 100),
        row("a.fp32 (torch)", 100, kind="torch"),
        row("b.fp32", 100, ceiling=None),
    )
    assert short(BenchReport(rows, HOW, ())) == {
        "graphs/m/a.fp32.onnx": {"saved %\n(ceiling)\nat 100": "24.6 (25.1)"},
        "graphs/m/b.fp32.onnx": {"saved %\n(ceiling)\nat 100": ""},
    }
