"""Scores as a table for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from pipeline.evals.score.results import average
from pipeline.store.records import Score

Columns = Mapping[str, Mapping[str, str]]
"""Artefact → heading of a further column → its text."""


def table(scores: Sequence[Score], further: Columns | None = None) -> Table:
    """One row a variant, one column a benchmark, the papers' average where all four benchmarks are there.

    Args:
        scores: of any number of artefacts.
        further: columns behind those of the benchmarks (latencies).
    """
    further = further or {}
    by_artefact: dict[str, dict[str, Score]] = {}
    for score in scores:
        by_artefact.setdefault(score.artefact, {})[score.benchmark] = score
    names = list(dict.fromkeys(score.benchmark for score in scores))
    averages = {artefact: average(own.values()) for artefact, own in by_artefact.items()}
    has_average = any(averages.values())
    others = list(dict.fromkeys(column for columns in further.values() for column in columns))
    rows = Table(title=_title(scores), caption=_caption(scores))
    rows.add_column("variant", no_wrap=True)
    chances = {score.benchmark: score.chance for score in scores if score.chance is not None}
    headings = [f"{name}\nchance {100 * chances[name]:.3g}" if name in chances else name for name in names]
    for heading in [*headings, *(["average"] if has_average else []), *others]:
        rows.add_column(heading, justify="right", no_wrap=True)
    for artefact in dict.fromkeys([*by_artefact, *further]):
        own = by_artefact.get(artefact, {})
        cells = [own[name].text + _mark(own[name]) if name in own else "" for name in names]
        if has_average:
            mean = averages.get(artefact)
            cells.append(mean.text if mean else "")
        cells += [further.get(artefact, {}).get(column, "") for column in others]
        rows.add_row(_row_name(Path(artefact)), *cells)
    return rows


def _row_name(artefact: Path) -> str:
    return artefact.stem if artefact.suffix == ".onnx" else "/".join(artefact.parts[-2:])


def _mark(score: Score) -> str:
    return ("" if score.is_whole else "*") + ("" if score.checked else " ?")


def _title(scores: Sequence[Score]) -> str:
    if not scores:
        return "no scores yet"
    protocols = sorted({score.protocol for score in scores})
    return f"scores in %, ± standard error; protocol {', '.join(protocols)}"


def _caption(scores: Sequence[Score]) -> str:
    """What a reader must know before believing the table."""
    notes = []
    if partial := [score for score in scores if not score.is_whole]:
        counts = ", ".join(dict.fromkeys(f"{score.benchmark} {score.n}" for score in partial))
        notes.append(f"* not the whole published set (documents: {counts}): not a number to publish")
    for score in scores:
        if score.num_fewshot is not None:
            notes.append(f"{score.benchmark}: {score.num_fewshot}-shot")
        if score.shots:
            notes.append(f"{score.benchmark}: few-shot examples from {score.shots}")
    if any(score.is_loss for score in scores):
        notes.append("a loss is the token loss over log V: lower is better")
    if not all(score.checked for score in scores):
        notes.append("? unchecked: nothing says that this artefact computes the right thing")
    return "\n".join(dict.fromkeys(notes))
