"""Our numbers stand beside the paper's own, with their marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report import collect, tables, tyukin
from tests import results

MODEL = "Llama-2-7b-hf"


def cells(name: str) -> dict[tuple[str, str], tables.TableCell]:
    """(row, column) → cell of one of the paper's tables."""
    all_cells = tables.numbers(tyukin.tables(collect.collect()))
    return {(row, column): cell for table, row, column, cell in all_cells if table == name}


def test_a_score_stands_beside_the_papers_own(workdir: Path) -> None:
    results.small_grid(MODEL)
    table = cells("tyukin-02")  # attention, the last ones
    cell = table[f"{MODEL}-75%", "ARC"]
    assert (cell.text(), cell.paper, cell.difference) == ("59.5 ±1.0", 52.5, pytest.approx(7.0))
    assert cell.source and json.loads(cell.source.path.read_text())["pipeline"]["variant"] == "attn24-31"
    assert table[f"{MODEL}-100%", "Average"].text() == "60.0 ±0.5"
    assert table[f"{MODEL}-90%", "ARC"].text() == "not run" and table[f"{MODEL}-90%", "ARC"].paper == 52.8
    assert table["13B-75%", "MMLU"].text() == "not run" and table["13B-75%", "MMLU"].paper == 52.1
    assert not any(row.startswith("7B") for row, _ in table)  # it is ours, under our name


def test_a_latency_stands_beside_the_papers_own(workdir: Path) -> None:
    results.small_grid(MODEL)
    table = cells("tyukin-09")
    assert table[f"{MODEL}-75%", "Full, %"].text() == "25.00 ±1.00"
    seconds = table[f"{MODEL}-75%", "Full, s"]
    assert seconds.value == pytest.approx(2.0 * 100 * 0.75 / 10 * 10)  # of 1000 sequences
    assert any("scaled to 1000 from 100" in note for note in seconds.notes)
    assert table[f"{MODEL}-100%", "Full, s"].paper == 48.0


def test_marks_say_what_a_number_rests_on(workdir: Path) -> None:
    results.config(MODEL)
    results.score(MODEL, "base", "arc", 0.5, limit=20, n=20)
    results.score(MODEL, "attn24-31", "arc", 0.4, checked=False)
    table = cells("tyukin-02")
    assert table[f"{MODEL}-100%", "ARC"].text() == "50.0 ±1.0 *"
    assert table[f"{MODEL}-100%", "ARC"].notes == ("20 documents, not the whole published set",)
    assert "unchecked" in table[f"{MODEL}-75%", "ARC"].notes[0]
    results.score(MODEL, "base", "arc", 0.52)  # the whole set takes the place of a part
    assert cells("tyukin-02")[f"{MODEL}-100%", "ARC"].text() == "52.0 ±1.0"
    assert cells("tyukin-02")[f"{MODEL}-100%", "Average"].text() == "needs HellaSwag, TruthfulQA, MMLU"


def test_a_model_whose_layers_are_not_known_is_a_gap(workdir: Path) -> None:
    results.check("unknown", "attn24-31")
    assert cells("tyukin-02")["unknown-75%", "ARC"].text() == tyukin.UNKNOWN_LAYERS
    assert cells("tyukin-09")["unknown-75%", "Full, s"].text() == tyukin.UNKNOWN_LAYERS
    assert cells("tyukin-02")["unknown-100%", "ARC"].text() == "not run"
