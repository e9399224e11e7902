from __future__ import annotations

from pipeline.report.tables import PaperTable, TableCell, numbers


def test_a_cell_in_words() -> None:
    cell = TableCell(52.1, 1.4, paper=53.1, notes=("20 documents",))
    assert cell.text() == "52.1 ±1.4 *" and cell.beside() == "paper 53.1, difference -1.0"
    assert TableCell(0.0, digits=2).text() == "0.00" and TableCell(1.0).beside() == ""
    gap = TableCell(paper=53.1, gap="failed: out of memory")
    assert (gap.text(), gap.beside(), gap.difference) == ("failed: out of memory", "paper 53.1", None)
    assert TableCell().text() == "not run"


def test_numbers_and_notes_of_a_table() -> None:
    cells = [TableCell(1.0, notes=("a", "b")), TableCell(2.0, notes=("b",))]
    table = PaperTable("t", "title", "caption", ("x", "y"), [("row", cells)])
    assert numbers([table]) == [("t", "row", "x", cells[0]), ("t", "row", "y", cells[1])]
    assert table.notes() == ["a", "b"]
