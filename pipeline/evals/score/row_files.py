"""Rows of a benchmark as files hold them: JSON lines, CSV or parquet, each read strictly.

A CSV reader that guesses takes a trailing comma as one more index column and moves every cell to its
neighbour's name; here a row whose cells do not fit the header is refused with its line.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.models import json_lines
from pipeline.models.json_lines import Row
from pipeline.store.records import refuse_odd_file
from pipeline.types import UserError, first_line

SUFFIXES = (".jsonl", ".csv", ".parquet")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read(file: Path, texts: Collection[str] = ()) -> list[tuple[str, Row]]:
    """(where, row) of every row: 'line 7', or 'row 7' in parquet; a line is the first of its row.

    Args:
        file: with one of SUFFIXES.
        texts: columns that hold text: their cells in a CSV stay as they are, '1' and '[2]' too.

    Raises:
        UserError: the file is malformed; file and line are named.
    """
    if file.suffix == ".parquet":
        return [(f"row {number}", row) for number, row in enumerate(_parquet(file), 1)]
    rows = _csv(file, texts) if file.suffix == ".csv" else json_lines.read(file)
    return [(f"line {line}", row) for line, row in rows]


def _csv(file: Path, texts: Collection[str]) -> list[tuple[int, Row]]:
    """Rows by line. Cells are text, or, in other columns, what `_cell` makes of them."""
    records = _records(file, json_lines.read_text(file))
    if not records:
        raise UserError(f"{file} is no CSV with a header line (it is empty)")
    (first, header), *body = records
    if "" in (names := [name.strip() for name in header]):
        raise UserError(f"{file}, line {first}: column {names.index('') + 1} of the header has no name")
    _refuse_twice(file, header)
    for line, cells in body:
        if len(cells) != len(header):
            comma = "; a comma too many at its end?" if cells[-1] == "" and len(cells) > len(header) else ""
            raise UserError(
                f"{file}, line {line}: {len(cells)} cells, and the header names {len(header)} "
                f"columns ({', '.join(header)}){comma}"
            )
    kinds = {name: _kind([cells[column] for _, cells in body]) for column, name in enumerate(header)}
    return [
        (
            line,
            {
                n: c if n in texts else _cell(file, line, c, kinds[n])
                for n, c in zip(header, cells, strict=True)
            },
        )
        for line, cells in body
    ]


def _kind(cells: list[str]) -> type:
    """Of a column's values: only those kinds that look in a prompt as they look in the file."""
    if all(map(_INTEGER.fullmatch, cells)):
        return int
    return bool if set(cells) <= {"True", "False"} else str


def _records(file: Path, text: str) -> list[tuple[int, list[str]]]:
    """(first line, cells) of every record; blank lines are none."""
    csv.field_size_limit(sys.maxsize)  # 128 KB by default, and a meeting of QMSum is longer
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records, line = [], 1
    try:
        for cells in reader:
            if cells:
                records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        why = "a quoted cell is not closed" if "unexpected end" in str(error) else str(error)
        raise UserError(f"{file}, line {line}: {why}") from None
    return records


def _refuse_twice(file: Path, names: list[str]) -> None:
    (name, count), *_ = Counter(names).most_common(1) or [("", 0)]
    if count > 1:
        raise UserError(f"{file}: two columns have the name {name!r}; which one is meant?")


def _cell(file: Path, line: int, cell: str, kind: type) -> Any:
    """A cell's value: a list or an object where it holds one as JSON."""
    if kind is not str:
        return cell == "True" if kind is bool else int(cell)
    if cell[:1] not in ("[", "{"):
        return cell
    try:
        return json_lines.parse(cell)
    except ValueError as error:
        if "stands there twice" in str(error):
            raise UserError(f"{file}, line {line}: {error}") from None
        return cell  # text that begins with a bracket


def _parquet(file: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    refuse_odd_file(file, json_lines.MAX_BYTES)
    try:
        opened = parquet.ParquetFile(file)
        groups = (opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups))
        if (size := sum(group.total_byte_size for group in groups)) > json_lines.MAX_BYTES:
            raise UserError(f"{file} holds {size:,} bytes of rows; {json_lines.MAX_BYTES:,} is the most")
        table = opened.read()
        _refuse_twice(file, table.column_names)
        rows: list[Row] = table.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} is no parquet file ({first_line(error, 200)})") from None
    return rows
