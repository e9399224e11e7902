"""The tables as Markdown, LaTeX (booktabs) and CSV. Names come from files and are escaped for each."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable
from typing import Any

from pipeline.report.charts import Chart
from pipeline.report.recommend import Recommendation
from pipeline.report.rows import Artefact, Findings
from pipeline.report.tables import Cell, Table, numbers

SHOWN = 200
"""Artefacts in report.md; all are in tables/results.csv."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
}
_LATEX |= {
    "≤": r"$\le$",
    "…": r"\dots{}",
    "–": "--",
    "ℓ": r"$\ell$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(
    found: Findings,
    tables: list[Table],
    recommended: list[Recommendation],
    drawn: list[Chart],
    figures: list[tuple[str, str, str | None]],
) -> str:
    """report.md."""
    lines = [
        "# Report",
        "",
        "Every number links to the JSON file that it was read from. `*`: see the notes below the table.",
        "",
    ]
    lines += ["## Recommendations", ""]
    lines += [_recommendation(one) for one in recommended] or [
        "Not yet: needs a bench and a score of the same graphs."
    ]
    lines += ["", "## Artefacts", "", *_artefacts(found.artefacts), ""]
    lines += ["## The papers' tables", ""]
    for table in tables:
        lines += [
            f"### {md(table.title)}",
            "",
            *_md_table(table),
            "",
            md(table.caption),
            *(f"- \\* {md(note)}" for note in table.notes()),
            "",
        ]
    lines += [
        "## The papers' figures",
        "",
        *(f"- {md(figure)}: {md(words)}" for figure, words, _ in figures),
        "",
    ]
    lines += ["## Charts", "", "Drawn in index.html; as Plotly JSON in charts/.", ""]
    lines += [
        f"- {md(c.title)}: {md(c.gap) if c.gap else f'[charts/{c.name}.json](charts/{c.name}.json)'}"
        for c in drawn
    ]
    if found.problems:
        lines += [
            "",
            "## Files that could not be used",
            "",
            *(f"- {md(path)}: {md(why)}" for path, why in found.problems),
        ]
    return "\n".join(lines) + "\n"


def md(text: str) -> str:
    """Text that Markdown leaves as it is; signs of HTML as entities, which no reader takes for tags."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _recommendation(one: Recommendation) -> str:
    links = ", ".join(f"[{md(what)}]({source.copy})" for what, source in one.evidence)
    return f"- **{md(one.model)}, {md(one.budget)}** ({md(one.where)}): {md(one.words)}. {md('; '.join(one.doubts))}. Evidence: {links}."


def _artefacts(artefacts: list[Artefact]) -> list[str]:
    lines = ["| model | artefact | check | scores | latency |", "|---|---|---|---|---|"]
    for a in artefacts[:SHOWN]:
        check = md(a.check or "not run")
        scores = "; ".join(
            f"[{md(s.benchmark)} {s.text}]({s.source.copy})" + (" \\*" if s.marks() else "") for s in a.scores
        )
        times = "; ".join(
            f"[{t.what}: {t.p50:.1f} ms, {t.saved:.1f} % saved]({t.source.copy})"
            + (" \\*" if t.marks() else "")
            for t in a.times
            if t.contestant == "artefact"
        )
        check = f"[{check}]({a.checked_in.copy})" if a.checked_in else check
        lines.append(
            f"| {md(a.model)} | {md(a.name)} | {check} | {scores or 'not run'} | {times or md(a.unproven or 'not run')} |"
        )
    notes = dict.fromkeys(note for a in artefacts[:SHOWN] for one in a.results for note in one.marks())
    lines += ["", *(f"- \\* {md(note)}" for note in notes)]
    if len(artefacts) > SHOWN:
        lines += ["", f"{len(artefacts) - SHOWN} more are in [tables/results.csv](tables/results.csv)."]
    return lines


def _md_table(table: Table) -> list[str]:
    lines = ["| | " + " | ".join(map(md, table.headings)) + " |", "|---" * (len(table.headings) + 1) + "|"]
    return lines + [
        f"| {md(head)} | " + " | ".join(map(_md_cell, cells)) + " |" for head, cells in table.rows
    ]


def _md_cell(cell: Cell) -> str:
    text = f"[{md(cell.text())}]({cell.source.copy})" if cell.source else md(cell.text())
    return text + (f" ({md(cell.beside())})" if cell.beside() else "")


# ---- LaTeX ----------------------------------------------------------------------------------------------------------


def latex(table: Table) -> str:
    r"""One floating table, no wider than the text, for a document that has \usepackage{booktabs,graphicx}.

    In brackets: the paper's number, and how far ours is from it.
    """
    lines = [
        "% Written by `pipeline report`; needs \\usepackage{booktabs,graphicx}.",
        "\\begin{table}",
        "\\centering",
        "\\small",
    ]
    lines += [f"\\caption{{{tex(table.title)}. {tex(table.caption)}}}", f"\\label{{tab:{table.name}}}"]
    lines.append("\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%")
    lines += [f"\\begin{{tabular}}{{l{'r' * len(table.headings)}}}", "\\toprule"]
    lines += ["Model & " + " & ".join(map(tex, table.headings)) + r" \\", "\\midrule"]
    before = None
    for head, cells in table.rows:
        model = head.rpartition("-")[0]
        lines += ["\\midrule"] if before not in (None, model) else []
        before = model
        lines.append(f"{tex(head)} & " + " & ".join(map(_tex_cell, cells)) + r" \\")
    lines += [
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\\par\\footnotesize * {tex(note)}" for note in table.notes()),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Text that LaTeX prints as it is; what it has no sign for becomes '?'."""
    made = "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
    return made.encode("latin-1", "replace").decode("latin-1")


def _tex_cell(cell: Cell) -> str:
    text = tex(cell.text()) if cell.value is not None else f"\\textit{{{tex(cell.text())}}}"
    if cell.paper is None:
        return text
    apart = "" if cell.difference is None else f", ${cell.difference:+.{cell.digits}f}$"
    return f"{text} ({cell.paper:.{cell.digits}f}{apart})"


# ---- CSV ------------------------------------------------------------------------------------------------------------


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """CSV whose text cells no spreadsheet takes for formulas."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow(
            [
                f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
                for cell in row
            ]
        )
    return out.getvalue()


def csv_table(table: Table) -> str:
    """One line a cell, so that value, error, paper and source each have a column."""
    rows = [
        ("row", "column", "value", "stderr", "paper", "difference", "gap", "notes", "source", "source_sha256")
    ]
    return csv_text([*rows, *(_line(head, column, cell) for _, head, column, cell in numbers([table]))])


def _line(head: str, column: str, cell: Cell) -> tuple[Any, ...]:
    source = (cell.source.copy, cell.source.digest) if cell.source else ("", "")
    gap = "" if cell.value is not None else cell.text()
    return (
        head,
        column,
        cell.value,
        cell.stderr,
        cell.paper,
        cell.difference,
        gap,
        "; ".join(cell.notes),
        *source,
    )


RESULTS = (
    "model", "artefact", "variant", "kind", "fraction", "precision", "runner", "sha256", "what", "metric", "value", "stderr", "low", "high",
    "unit", "n", "device", "versions", "notes", "source", "source_sha256",
)  # fmt: skip


def results_csv(found: Findings) -> str:
    """Every number that was found, one a line."""
    return csv_text([RESULTS, *(row for a in found.artefacts for row in _numbers(a))])


def _numbers(a: Artefact) -> Iterable[tuple[Any, ...]]:
    own = (a.model, a.name, a.variant, a.kind, a.fraction, a.precision, a.runner, a.digest)
    if a.checked_in:
        yield (
            *own,
            "check",
            a.check,
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            a.checked_in.copy,
            a.checked_in.digest,
        )
    for s in a.scores:
        unit = "loss / log V" if s.is_loss else "fraction"
        told = (s.benchmark, s.metric, s.value, s.stderr, "", "", unit, s.n)
        yield (*own, *told, s.device, s.versions, "; ".join(s.marks()), s.source.copy, s.source.digest)
    for t in a.times:
        what = f"{t.what}, {t.contestant}"
        end = (t.sequences, t.device, t.versions, "; ".join(t.marks()), t.source.copy, t.source.digest)
        yield (*own, what, "p50", t.p50, "", "", "", "ms", *end)
        yield (*own, what, "saved", t.saved, "", *t.interval, "%", *end)
        for metric, value, unit in (
            ("ceiling", t.ceiling, "%"),
            ("weights", t.weight_mb, "MB"),
            ("cache", t.cache_bytes, "bytes a token"),
        ):
            if value is not None:
                yield (*own, what, metric, value, "", "", "", unit, *end)
