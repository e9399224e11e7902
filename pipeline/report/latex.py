"""The papers' tables as LaTeX (booktabs). Names come from files and are escaped."""

from __future__ import annotations

from pipeline.report.tables import PaperTable, TableCell

_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "…": r"\dots{}",
    "–": "--",
    "ℓ": r"$\ell$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex(table: PaperTable) -> str:
    r"""One floating table, no wider than the text, for a document that has \usepackage{booktabs,graphicx}.

    In brackets: the paper's number, and how far ours is from it.
    """
    lines = [
        "% Written by `pipeline report`; needs \\usepackage{booktabs,graphicx}.",
        "\\begin{table}",
        "\\centering",
        "\\small",
        f"\\caption{{{tex(table.title)}. {tex(table.caption)}}}",
        f"\\label{{tab:{table.name}}}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{l{'r' * len(table.headings)}}}",
        "\\toprule",
        "Model & " + " & ".join(map(tex, table.headings)) + r" \\",
        "\\midrule",
        *_rows(table),
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\\par\\footnotesize * {tex(note)}" for note in table.notes()),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _rows(table: PaperTable) -> list[str]:
    """The rows, with a line between models."""
    lines, before = [], None
    for head, cells in table.rows:
        model = head.rpartition("-")[0]
        if before not in (None, model):
            lines.append("\\midrule")
        before = model
        lines.append(f"{tex(head)} & " + " & ".join(map(_cell, cells)) + r" \\")
    return lines


def tex(text: str) -> str:
    """Text that LaTeX prints as it is; what it has no sign for becomes '?'."""
    escaped = "".join(_SIGNS.get(sign, sign) for sign in " ".join(text.split()))
    return escaped.encode("latin-1", "replace").decode("latin-1")


def _cell(cell: TableCell) -> str:
    text = tex(cell.text()) if cell.value is not None else f"\\textit{{{tex(cell.text())}}}"
    if cell.paper is None:
        return text
    difference = "" if cell.difference is None else f", ${cell.difference:+.{cell.digits}f}$"
    return f"{text} ({cell.paper:.{cell.digits}f}{difference})"
