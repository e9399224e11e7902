"""What a person sees of a sweep."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.sweep import recipe, sweep
from pipeline.sweep.ledger import Ledger
from pipeline.sweep.progress import ProgressView, duration
from tests.grids import FakePool, known, run


@pytest.mark.parametrize(
    ("seconds", "words"), [(9.6, "10 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.6, "1 min 00 s")]
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_view_shows_how_far_it_is_and_what_failed(workdir: Path) -> None:
    path = known()
    out = io.StringIO()
    ledger, pool = Ledger.open(path), FakePool(fails=("tiny.attn2.fp32.check",))
    with ProgressView("grid", ledger, Console(file=out, force_terminal=True, width=150)) as view:
        sweep.Sweep(recipe.read(path), ledger, pool, view, None, pool.is_done).run()
        view.update()
    screen = out.getvalue()
    assert "sweep grid: 33 of 36 jobs done, 1 failed" in screen
    assert "the disk is full" in screen and "FAILED" in screen


def test_without_a_terminal_each_job_is_a_line(workdir: Path) -> None:
    out = io.StringIO()
    run(known(), FakePool(), console=Console(file=out))
    lines = out.getvalue().splitlines()
    assert len(lines) == 36 and lines[0].split()[:4] == ["done", "2", "s", "1/36"]
    assert "36/36" in lines[-1] and "tiny.base.fp32.bench" in lines[-1]
