from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sweep.jobs import GridCell, Job, SweepPlan


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (GridCell(), "base"),
        (GridCell("attn", 0.25, "last"), "attn 25% last"),
        (GridCell("mlp", 1, "x"), "mlp 100% x"),
    ],
)
def test_a_cell_says_what_it_is(cell: GridCell, words: str) -> None:
    assert cell.words == words


def test_a_plan_keeps_the_order_and_knows_what_runs() -> None:
    plan = SweepPlan()
    export = plan.add(Job("a", "export", "m", GridCell(), ("pipeline",), outputs=(Path("a"),)))
    choice = plan.add(Job("b", "select", "m", GridCell(), ("pipeline",), inline=True))
    assert plan.jobs == [export, choice] and plan.processes == [export]
    plan.note("once")
    plan.note("once")
    assert plan.notes == ["once"]
