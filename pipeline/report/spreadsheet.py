"""CSV: each of the papers' tables, and every number in one file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.report.rows import ArtefactResults, Collection, SourcedLatency, SourcedScore
from pipeline.report.tables import PaperTable, TableCell, numbers

CELL = ("row", "column", "value", "stderr", "paper", "difference", "gap", "notes", "source", "source_sha256")
OWN = ("model", "artefact", "variant", "kind", "fraction", "precision", "runner", "sha256")
NUMBER = ("what", "metric", "value", "stderr", "low", "high", "unit", "n", "device", "versions", "notes")
SOURCE = ("source", "source_sha256")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """CSV whose text cells no spreadsheet takes for formulas."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([_inert(cell) for cell in row] for row in rows)
    return out.getvalue()


def _inert(cell: Any) -> Any:
    is_formula = isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{cell}" if is_formula else cell


def table_csv(table: PaperTable) -> str:
    """One line a cell, so that value, error, paper and source each have a column."""
    return csv_text([CELL, *(_line(head, column, cell) for _, head, column, cell in numbers([table]))])


def _line(head: str, column: str, cell: TableCell) -> tuple[Any, ...]:
    source = (cell.source.copy, cell.source.sha256) if cell.source else ("", "")
    gap = "" if cell.value is not None else cell.text()
    number = (cell.value, cell.stderr, cell.paper, cell.difference)
    return (head, column, *number, gap, "; ".join(cell.notes), *source)


def results_csv(collection: Collection) -> str:
    """Every number of the collection, one a line."""
    rows = (row for artefact in collection.artefacts for row in _numbers(artefact))
    return csv_text([(*OWN, *NUMBER, *SOURCE), *rows])


def _numbers(a: ArtefactResults) -> Iterator[tuple[Any, ...]]:
    own = (a.model, a.name, a.variant, a.kind, a.fraction, a.precision, a.runner, a.sha256)
    if a.check_source:
        nothing = [""] * (len(NUMBER) - 2)
        yield (*own, "check", a.check, *nothing, a.check_source.copy, a.check_source.sha256)
    for score in a.scores:
        yield from ((*own, *numbers) for numbers in _score(score))
    for latency in a.latencies:
        yield from ((*own, *numbers) for numbers in _latency(latency))


def _score(one: SourcedScore) -> Iterator[tuple[Any, ...]]:
    score = one.score
    unit, end = "loss / log V" if score.is_loss else "fraction", (score.n, *_origin(one))
    yield (score.benchmark, score.metric, score.value, score.stderr, "", "", unit, *end)
    if score.chance is not None:
        yield (score.benchmark, "chance", score.chance, "", "", "", unit, *end)


def _latency(one: SourcedLatency) -> Iterator[tuple[Any, ...]]:
    row = one.record
    what, end = f"{one.workload}, {row.kind}", (one.conditions.sequences, *_origin(one))
    yield (what, "p50", row.p50, "", "", "", "ms", *end)
    yield (what, "saved", row.improvement, "", *row.interval, "%", *end)
    if plain := row.over_plain:
        yield (what, f"saved of {plain.base}", plain.improvement, "", *plain.interval, "%", *end)
    for metric, value, unit in (
        ("ceiling", row.ceiling, "%"),
        ("weights", row.weight_mb, "MB"),
        ("cache", row.cache_bytes_per_token, "bytes a token"),
    ):
        if value is not None:
            yield (what, metric, value, "", "", "", unit, *end)


def _origin(one: SourcedScore | SourcedLatency) -> tuple[str, ...]:
    return (one.device, one.versions, "; ".join(one.marks()), one.source.copy, one.source.sha256)
