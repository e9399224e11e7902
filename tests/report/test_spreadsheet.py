from __future__ import annotations

import csv
from pathlib import Path

from pipeline.report import collect, spreadsheet
from pipeline.report.tables import PaperTable, TableCell
from tests import results


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_no_text_is_a_formula() -> None:
    assert spreadsheet.csv_text([["=1+1", -1.5, "x"]]) == "'=1+1,-1.5,x\n"


def test_every_number_with_its_source(workdir: Path) -> None:
    results.small_grid("m")
    results.score("m", "base", "c4-loss", 0.3, None)
    collection = collect.collect()
    lines = rows(spreadsheet.results_csv(collection))
    assert {row["source_sha256"] for row in lines} == {source.sha256 for source in collection.sources}
    own = [row for row in lines if row["variant"] == "attn24-31"]
    assert [
        (row["metric"], row["value"], row["unit"]) for row in own if row["what"].startswith("prefill 50")
    ] == [
        ("p50", "92.0", "ms"),
        ("saved", "8.0", "%"),
        ("ceiling", "8.5", "%"),
        ("weights", "492.0", "MB"),
        ("cache", "46080", "bytes a token"),
    ]
    arc = next(row for row in own if row["what"] == "arc")
    assert (arc["value"], arc["stderr"], arc["unit"], arc["n"]) == ("0.595", "0.01", "fraction", "1000")
    mmlu = [(row["metric"], row["value"], row["unit"]) for row in own if row["what"] == "mmlu"]
    assert mmlu == [("acc_norm", "0.595", "fraction"), ("chance", "0.25", "fraction")]
    assert next(row for row in own if row["what"] == "check")["metric"] == "passed"
    loss = next(row for row in lines if row["what"] == "c4-loss")
    assert (loss["unit"], loss["stderr"]) == ("loss / log V", "")


def test_a_table_has_a_line_for_each_cell() -> None:
    cells = [TableCell(59.5, 1.0, paper=52.5), TableCell(paper=52.8, gap="not run")]
    table = PaperTable("t", "title", "caption", ("ARC", "MMLU"), [("m-75%", cells)])
    number, gap = rows(spreadsheet.table_csv(table))
    assert (number["column"], number["value"], number["difference"], number["gap"]) == (
        "ARC",
        "59.5",
        "7.0",
        "",
    )
    assert (gap["value"], gap["paper"], gap["gap"], gap["source"]) == ("", "52.8", "not run", "")
