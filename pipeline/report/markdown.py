"""report.md: the report as Markdown. Names come from files and are escaped."""

from __future__ import annotations

import html
import re

from pipeline.report.content import ReportContent
from pipeline.report.recommend import Recommendation
from pipeline.report.rows import ArtefactResults
from pipeline.report.tables import PaperTable, TableCell
from pipeline.store.records import Latency

SHOWN = 200
"""Artefacts in report.md; all are in tables/results.csv."""


def markdown(content: ReportContent) -> str:
    """report.md."""
    recommendations = [_recommendation(one) for one in content.recommendations]
    charts = [
        f"- {md(c.title)}: "
        + (md(c.gap) if c.gap else f"[charts/{c.name}.json](charts/{c.name}.json). {md(c.caption)}")
        for c in content.charts
    ]
    lines = [
        "# Report",
        "",
        "Every number links to the JSON file that it was read from. `*`: see the notes below the table.",
        "",
        "## Recommendations",
        "",
        *(recommendations or ["Not yet: needs a bench and a score of the same graphs."]),
        "",
        "## Artefacts",
        "",
        *_artefacts(content.collection.artefacts),
        "",
        "## The papers' tables",
        "",
        *(line for table in content.tables for line in _section(table)),
        "## The papers' figures",
        "",
        *(f"- {md(one.figure)}: {md(one.words)}" for one in content.figures),
        "",
        "## Charts",
        "",
        "Drawn in index.html; as Plotly JSON in charts/.",
        "",
        *charts,
    ]
    if problems := content.collection.problems:
        files = [f"- {md(one.name)}: {md(one.reason)}" for one in problems]
        lines += ["", "## Files that could not be used", "", *files]
    return "\n".join(lines) + "\n"


def md(text: str) -> str:
    """Text that Markdown leaves as it is; signs of HTML as entities, which no reader takes for tags."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _recommendation(one: Recommendation) -> str:
    links = ", ".join(f"[{md(what)}]({source.copy})" for what, source in one.evidence)
    head = f"- **{md(one.model)}, {md(one.budget)}** ({md(one.where)})"
    return f"{head}: {md(one.words)}. {md('; '.join(one.doubts))}. Evidence: {links}."


def _artefacts(artefacts: list[ArtefactResults]) -> list[str]:
    shown = artefacts[:SHOWN]
    lines = [
        "| model | artefact | check | scores | latency |",
        "|---|---|---|---|---|",
        *map(_artefact, shown),
    ]
    notes = dict.fromkeys(note for a in shown for one in a.results for note in one.marks())
    lines += ["", *(f"- \\* {md(note)}" for note in notes)]
    if len(artefacts) > SHOWN:
        lines += ["", f"{len(artefacts) - SHOWN} more are in [tables/results.csv](tables/results.csv)."]
    return lines


def _artefact(artefact: ArtefactResults) -> str:
    check = md(artefact.check or "not run")
    if artefact.check_source:
        check = f"[{check}]({artefact.check_source.copy})"
    scores = "; ".join(
        f"[{md(one.score.benchmark)} {one.score.text}]({one.source.copy})" + (" \\*" if one.marks() else "")
        for one in artefact.scores
    )
    latencies = "; ".join(
        f"[{one.workload}: {one.record.p50:.1f} ms, {_saved(one.record)}]({one.source.copy})"
        + (" \\*" if one.marks() else "")
        for one in artefact.latencies
        if one.record.kind == "artefact"
    )
    cells = (
        md(artefact.model),
        md(artefact.name),
        check,
        scores or "not run",
        latencies or md(artefact.unproven or "not run"),
    )
    return f"| {' | '.join(cells)} |"


def _saved(row: Latency) -> str:
    """'8.0 % saved', and of quantised weights what is saved of the base with the checkpoint's own."""
    beside = f", {row.over_plain.improvement:.1f} % of {row.over_plain.base}" if row.over_plain else ""
    return f"{row.improvement:.1f} % saved{beside}"


def _section(table: PaperTable) -> list[str]:
    notes = [f"- \\* {md(note)}" for note in table.notes()]
    return [f"### {md(table.title)}", "", *_rows(table), "", md(table.caption), *notes, ""]


def _rows(table: PaperTable) -> list[str]:
    head = "| | " + " | ".join(map(md, table.headings)) + " |"
    rows = [f"| {md(head)} | {' | '.join(map(_cell, cells))} |" for head, cells in table.rows]
    return [head, "|---" * (len(table.headings) + 1) + "|", *rows]


def _cell(cell: TableCell) -> str:
    text = f"[{md(cell.text())}]({cell.source.copy})" if cell.source else md(cell.text())
    return text + (f" ({md(cell.beside())})" if cell.beside() else "")
