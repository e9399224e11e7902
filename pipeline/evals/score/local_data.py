"""Benchmark rows from local files, in the hub's column names: JSON lines, CSV or parquet. Nothing is looked up outside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.evals.score.benchmarks import Benchmark, Part, Split
from pipeline.types import UserError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows of a split came from, for the result.

    Attributes:
        rows: how many there are; `official` how many the published set has (of a subject: not known, None).
    """

    file: Path
    rows: int
    official: int | None
    sha256: str

    def record(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "rows": self.rows,
            "official_rows": self.official,
            "sha256": self.sha256,
        }


def file_of(benchmark: Benchmark, part: Part, split: Split, data: Path | None) -> Path | None:
    """The split's file; None where it is to come from the hub, or is missing."""
    name = split.file.replace("{subject}", part.subject)
    root = benchmark.folder if name.startswith("./") else data
    if root is None:
        return None
    stem = root / name.removeprefix("./")
    return next(
        (found for suffix in SUFFIXES if (found := stem.with_name(stem.name + suffix)).is_file()), None
    )


def require(benchmark: Benchmark, part: Part, split: str, data: Path) -> Path:
    """The split's file.

    Raises:
        UserError: it is missing; says where to get it.
    """
    wanted = part.definition.data[split]
    if found := file_of(benchmark, part, wanted, data):
        return found
    name = wanted.file.replace("{subject}", part.subject)
    if name.startswith("./"):
        raise UserError(
            f"{benchmark.folder}/{name[2:]}.jsonl (or .csv, .parquet) is missing: it belongs beside {benchmark.name}.yaml"
        )
    raise UserError(
        f"{data / name}.jsonl (or .csv, .parquet) is missing: the {split} rows of {benchmark.name}; save them there from "
        f"https://huggingface.co/datasets/{wanted.home.split(',')[0]} ({wanted.home})"
    )


def read(file: Path, columns: list[str], form: str | None = None) -> list[Row]:
    """The rows of a file, each with all the columns.

    Raises:
        UserError: a row is malformed (file and line), or there is none.
    """
    try:
        rows = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}[file.suffix](file)
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if form == "meetings" and rows and "meeting_transcripts" in rows[0][1]:
        rows = [(line, row) for line, meeting in rows for row in _queries(file, line, meeting)]
    for line, row in rows:
        for column in columns:
            if row.get(column) is None:
                raise UserError(
                    f"{file}, line {line}: no {column!r}; a row has the columns {', '.join(columns)}"
                )
    if not rows:
        raise UserError(f"{file} holds no row")
    return [row for _, row in rows]


def dataset(file: Path, rows: list[Row]) -> Any:
    """The rows as a `datasets.Dataset`.

    Raises:
        UserError: a row has another form than the first.
    """
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.from_list(rows)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        for number, row in enumerate(rows[1:], 2):
            try:
                datasets.Dataset.from_list([rows[0], row])
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as own:
                raise UserError(f"{file}, row {number}: not of the form of the first row ({own})") from None
        raise UserError(f"{file}: the rows are not of one form ({error})") from None


def source(file: Path, rows: int, official: int | None) -> Source:
    return Source(file, rows, official, store.sha256(file))


def _json_lines(file: Path) -> list[tuple[int, Row]]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: not a JSON object")
        rows.append((number, row))
    return rows


def _csv(file: Path) -> list[tuple[int, Row]]:
    """Lists and objects stand in their cells as JSON."""
    import pandas

    try:
        records = pandas.read_csv(file, keep_default_na=False).to_dict("records")
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{file} is no CSV with a header line ({error})") from None
    return [(number, {str(k): _cell(v) for k, v in row.items()}) for number, row in enumerate(records, 2)]


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value  # text that begins with a bracket
    return value


def _parquet(file: Path) -> list[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        return list(enumerate(parquet.read_table(file).to_pylist(), 1))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is no parquet file ({error})") from None


def _queries(file: Path, line: int, meeting: Row) -> list[Row]:
    """A meeting as Yale-LILY/QMSum publishes it → one row a query, in LongBench's columns."""
    try:
        context = "\n".join(
            f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]
        )
        asked = [*meeting["general_query_list"], *meeting["specific_query_list"]]
        return [
            {"context": context, "question": query["query"], "answers": [query["answer"]]} for query in asked
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}, line {line}: no meeting of QMSum: it lacks {error}") from None
