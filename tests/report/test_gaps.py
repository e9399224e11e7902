"""What no file says is a gap with its reason."""

from __future__ import annotations

from pathlib import Path

from pipeline.report import collect, tables, tyukin
from pipeline.report.gaps import Lookup
from tests import results

MODEL = "Llama-2-7b-hf"
CELL = {"kind": "mlp", "select": "last"}


def test_what_did_not_run_is_a_gap_with_its_reason(workdir: Path) -> None:
    results.small_grid(MODEL)
    planned, built = {**CELL, "frac": 0.10}, {**CELL, "frac": 0.33, "variant": "mlp21-31"}
    jobs = [
        ("export", "done", planned),
        ("check", "failed", {**planned, "error": "max_rel 0.4"}),
        ("score", "waiting", {**planned, "task": "arc"}),
        ("score", "failed", {**built, "task": "arc", "error": "out of memory"}),
        ("score", "waiting", {**built, "task": "mmlu"}),
        ("bench", "running", built),
    ]
    results.ledger([results.job(stage, MODEL, state, **about) for stage, state, about in jobs])
    results.engine(MODEL, "block28-31")
    lookup = Lookup(collect.collect())
    assert lookup.gap(MODEL, "mlp28-31", "score", "arc") == "not run: its check failed: max_rel 0.4"
    assert lookup.gap(MODEL, "mlp21-31", "score", "arc") == "failed: out of memory"
    assert lookup.gap(MODEL, "mlp21-31", "score", "mmlu") == "not run yet"
    assert lookup.gap(MODEL, "mlp21-31", "bench") == "running"
    assert lookup.gap(MODEL, "mlp1", "bench") == "not run"
    unproven = "needs a GPU: parsed and built on a CPU; not run"
    assert lookup.gap(MODEL, "block28-31", "bench") == unproven
    assert lookup.gap(MODEL, "block28-31", "score") == "not run"
    cells = tables.numbers(tyukin.tables(collect.collect()))
    assert all(cell.text() not in ("", "0.0") for *_, cell in cells if cell.value is None)
    shown = {(table, row, column): cell.text() for table, row, column, cell in cells}
    assert shown["tyukin-07", f"{MODEL}-90%", "Full, s"] == unproven
    assert shown["tyukin-03", f"{MODEL}-66%", "ARC"] == "failed: out of memory"


def test_a_failed_check_is_the_reason(workdir: Path) -> None:
    results.check("m", "attn1", passed=False)
    assert (
        Lookup(collect.collect())
        .gap("m", "attn1", "bench")
        .startswith("not run: its check failed: length 50")
    )
