"""Finalists beside each other: their marks, and the table for a person."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from pipeline.evals.finalists.front import front
from pipeline.store.records import FinalistRow, FinalistsRecord, Score
from pipeline.types import SkipSet


def average(scores: Sequence[Score]) -> float | None:
    """The mean of scores that are no token losses, as a fraction; None without any."""
    values = [score.value for score in scores if not score.is_loss]
    return sum(values) / len(values) if values else None


def marked(rows: Sequence[FinalistRow]) -> tuple[FinalistRow, ...]:
    """The rows, base and finalists, with those on either front marked; without scores none is on theirs."""
    times = _times(rows)
    near = front([(times[row.variant], row.divergence) for row in rows])
    scored = [row for row in rows if row.average is not None]
    good = front([(times[row.variant], -(row.average or 0.0)) for row in scored])
    best = {row.variant for row, is_on in zip(scored, good, strict=True) if is_on}
    return tuple(
        row.replaced(on_divergence_front=is_near, on_score_front=row.variant in best)
        for row, is_near in zip(rows, near, strict=True)
    )


def _times(rows: Sequence[FinalistRow]) -> dict[str, float]:
    """Variant → the milliseconds that it counts with: the mean of all rows that do as much work.

    Rows that leave out as many sublayers of each kind differ in their times by noise alone, which must not
    take any of them off the front.
    """
    groups: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        groups.setdefault((len(row.attention), len(row.mlp)), []).append(row.milliseconds)
    return {row.variant: fmean(groups[len(row.attention), len(row.mlp)]) for row in rows}


def table(record: FinalistsRecord) -> Table:
    """One row for the base and each finalist."""
    names = list(dict.fromkeys(score.benchmark for row in record.rows for score in row.scores))
    has_average = any(row.average is not None for row in record.rows)
    form = "" if record.form == "none" else f", compensated with {record.form}"
    rows = Table(
        title=f"{record.model}: finalists of {record.select}{form}; prefill of {record.length} tokens",
        caption=_caption(record, has_average),
    )
    rows.add_column("skip set", overflow="fold")
    headings = ["ms", "speed-up", "loss", "KL ± se", *names, *(["average"] if has_average else []), "front"]
    for heading in headings:
        rows.add_column(heading, justify="left" if heading == "front" else "right", no_wrap=True)
    for row in record.rows:
        rows.add_row(*_cells(row, names, has_average))
    return rows


def _cells(row: FinalistRow, names: Sequence[str], has_average: bool) -> list[str]:
    scores = {score.benchmark: score.text for score in row.scores}
    mean = "" if row.average is None else f"{100 * row.average:.2f}"
    fronts = {"KL": row.on_divergence_front, "score": row.on_score_front}
    return [
        SkipSet(row.attention, row.mlp).name + (" <" if row.is_choice else ""),
        f"{row.milliseconds:.1f}" + ("" if row.enough_clean else " ?"),
        f"{row.speedup:.2f}×",
        f"{row.loss:.4f}",
        f"{row.divergence:.4f}" + ("" if row.divergence_stderr is None else f" ±{row.divergence_stderr:.4f}"),
        *(scores.get(name, "") for name in names),
        *([mean] if has_average else []),
        ", ".join(name for name, is_on in fronts.items() if is_on),
    ]


def _caption(record: FinalistsRecord, has_average: bool) -> str:
    """What a reader must know before choosing."""
    notes = [
        "< the rule's own choice",
        "front KL: no other row is as fast and as near to the whole model, and better in one of the two"
        + ("; score: the same of the average" if has_average else "")
        + ". Rows that leave out as many sublayers of each kind count as equally fast",
        f"loss, KL: nats a token on {record.samples} held-out sequences of {record.sequence_length} tokens",
    ]
    if has_average:
        notes.append("scores in %, ± standard error; average: their mean, losses left out")
    if not all(row.enough_clean for row in record.rows):
        notes.append("? too few undisturbed samples: other work used the processors")
    return "\n".join(notes)
