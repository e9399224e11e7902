"""A table of the report: each cell holds a number beside the paper's own, or says why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.report.sources import SourceFile


@dataclass(frozen=True, slots=True)
class TableCell:
    """One number, or the reason why there is none.

    Attributes:
        value, stderr: in the table's unit.
        digits: after the point.
        paper: the paper's number; `difference` is ours less the paper's.
        notes: what must be known before believing it.
        gap: why there is no number of ours.
    """

    value: float | None = None
    stderr: float | None = None
    digits: int = 1
    paper: float | None = None
    source: SourceFile | None = None
    notes: tuple[str, ...] = ()
    gap: str | None = None

    @property
    def difference(self) -> float | None:
        """Our number less the paper's; None unless both are there."""
        return None if self.value is None or self.paper is None else self.value - self.paper

    def text(self) -> str:
        """'52.1 ±1.4 *', or the gap in words."""
        if self.value is None:
            return self.gap or "not run"
        spread = "" if self.stderr is None else f" ±{self.stderr:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{spread}" + (" *" if self.notes else "")

    def beside(self) -> str:
        """'paper 53.1, difference −1.0'; '' where the paper has no number."""
        if self.paper is None:
            return ""
        words = f"paper {self.paper:.{self.digits}f}"
        if self.difference is None:
            return words
        return f"{words}, difference {self.difference:+.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table in a paper's layout; the first column heads its rows."""

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: list[tuple[str, list[TableCell]]]

    def notes(self) -> list[str]:
        """What the asterisks mean."""
        return list(dict.fromkeys(note for _, cells in self.rows for cell in cells for note in cell.notes))


def numbers(tables: Iterable[PaperTable]) -> list[tuple[str, str, str, TableCell]]:
    """(table, row, column, cell) of every cell."""
    return [
        (table.name, head, column, cell)
        for table in tables
        for head, cells in table.rows
        for column, cell in zip(table.headings, cells, strict=True)
    ]
