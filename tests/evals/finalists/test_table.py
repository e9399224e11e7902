"""The comparison of finalists as a person reads it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pipeline.evals.finalists import table
from pipeline.store.records import FinalistRow, FinalistsRecord, Score, TextSource
from pipeline.types import SkipSet


def score(benchmark: str, value: float, metric: str = "acc") -> Score:
    return Score(
        variant="v",
        artefact="g.onnx",
        sha256="0" * 64,
        benchmark=benchmark,
        title=benchmark,
        metric=metric,
        value=value,
        stderr=0.01,
        n=100,
        protocol="lm-eval",
        checked=True,
    )


def row(name: str, milliseconds: float, divergence: float, *scores: Score, **changes: Any) -> FinalistRow:
    skip = SkipSet.parse(name)
    row = FinalistRow(
        variant=f"{name}~linear" if skip else name,
        attention=skip.attention,
        mlp=skip.mlp,
        artefact=f"graphs/m/{name}.fp32.onnx",
        milliseconds=milliseconds,
        speedup=100 / milliseconds,
        enough_clean=True,
        loss=3.0 + divergence,
        loss_stderr=0.1,
        divergence=divergence,
        divergence_stderr=0.0125,
        scores=scores,
        average=table.average(scores),
    )
    return row.replaced(**changes)


def compared(*rows: FinalistRow) -> FinalistsRecord:
    return FinalistsRecord(
        model="m",
        select="cosine",
        form="linear",
        length=100,
        texts=TextSource(origin="words"),
        samples=32,
        sequence_length=256,
        nominees=13,
        rows=table.marked(rows),
    )


def shown(record: FinalistsRecord) -> list[str]:
    page = io.StringIO()
    Console(width=160, file=page).print(table.table(record))
    return page.getvalue().splitlines()


def fronts(record: FinalistsRecord) -> list[tuple[bool, bool]]:
    return [(row.on_divergence_front, row.on_score_front) for row in record.rows]


ROWS = (
    row("base", 100.0, 0.0, score("smoke", 0.5), score("sums", 0.2)),
    row("attn1-2", 80.0, 0.5, score("smoke", 0.4), score("sums", 0.1)),
    row("attn1_3", 80.0, 0.4, score("smoke", 0.3), score("sums", 0.1), is_choice=True),
    row("attn2", 90.0, 0.4, score("smoke", 0.6), score("sums", 0.2), enough_clean=False),
)


def test_both_fronts_are_marked_on_their_own() -> None:
    """attn1-2 and attn1_3 do as much work: the one has the better mean score, the other is nearer."""
    record = compared(*ROWS)
    assert fronts(record) == [(True, False), (False, True), (True, False), (False, True)]
    assert [row.average for row in record.rows] == pytest.approx([0.35, 0.25, 0.2, 0.4])


def test_without_scores_there_is_one_front() -> None:
    bare = [one.replaced(scores=(), average=None) for one in ROWS]
    record = compared(*bare)
    assert [score for _, score in fronts(record)] == [False] * 4
    page = "\n".join(shown(record))
    assert "average" not in page and "of the average" not in page


def test_equal_rows_are_both_on_the_front() -> None:
    twins = compared(ROWS[0], ROWS[1], row("attn5-6", 80.0, 0.5, score("smoke", 0.4), score("sums", 0.1)))
    assert fronts(twins)[1:] == [(True, True)] * 2


def test_noise_between_rows_of_equal_work_takes_none_off_the_front() -> None:
    """Two attention sublayers less: 80 and 84 ms are one time, 82, and so the nearer one alone is kept."""
    slower = row("attn1-2", 84.0, 0.1, score("smoke", 0.4))
    faster = row("attn5-6", 80.0, 0.5, score("smoke", 0.3))
    other = row("attn5+mlp6", 83.0, 0.05, score("smoke", 0.2))
    record = compared(row("base", 100.0, 0.0, score("smoke", 0.5)), slower, faster, other)
    assert fronts(record) == [(True, True), (True, True), (False, False), (True, False)]


def test_the_table_has_a_row_each_with_the_base_first() -> None:
    lines = shown(compared(*ROWS))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells[0] == [
        "base",
        "100.0",
        "1.00×",
        "3.0000",
        "0.0000 ±0.0125",
        "50.00 ±1.00",
        "20.00 ±1.00",
        "35.00",
        "KL",
    ]
    assert cells[2][0] == "attn1_3 <" and cells[2][-1] == "KL" and cells[1][-1] == "score"
    assert cells[3][1] == "90.0 ?" and cells[3][2] == "1.11×"
    heading = next(line for line in lines if "skip set" in line)
    assert [one.strip() for one in heading.split("┃")[1:-1]] == [
        "skip set", "ms", "speed-up", "loss", "KL ± se", "smoke", "sums", "average", "front",
    ]  # fmt: skip
    page = "\n".join(lines)
    for words in ("< the rule's own choice", "no other row is as fast", "32 held-out sequences", "? too few"):
        assert words in page


def test_a_token_loss_counts_in_no_average() -> None:
    losses = [score("c4-loss", 0.3, "loss")]
    assert table.average(losses) is None
    assert table.average([*losses, score("smoke", 0.5)]) == 0.5
