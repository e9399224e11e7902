"""Benchmark rows from local files, in the hub's column names: JSON lines, CSV or parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.evals.score import row_checks, row_files
from pipeline.evals.score.benchmarks import Benchmark, Part
from pipeline.evals.score.definitions import Split
from pipeline.evals.score.row_checks import FormName
from pipeline.evals.score.row_files import SUFFIXES
from pipeline.models.json_lines import Row
from pipeline.store.records import DataSource
from pipeline.types import UserError, first_line

ANY_SUFFIX = f"{SUFFIXES[0]} (or {', '.join(SUFFIXES[1:])})"


def file_of(benchmark: Benchmark, part: Part, split: Split, data: Path | None) -> Path | None:
    """The split's file.

    Args:
        benchmark: a file that begins with ./ is beside its YAML.
        part: its subject stands for `{subject}` in the file's name.
        split: which rows.
        data: folder of all other files.

    Returns:
        None where the rows come from the hub, or the file is missing.
    """
    name = split.file.replace("{subject}", part.subject)
    root = benchmark.folder if name.startswith("./") else data
    if root is None:
        return None
    stem = root / name.removeprefix("./")
    candidates = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def require(benchmark: Benchmark, part: Part, split_name: str, data: Path) -> Path:
    """The split's file.

    Raises:
        UserError: it is missing; says where to get it.
    """
    split = part.definition.data[split_name]
    if file := file_of(benchmark, part, split, data):
        return file
    name = split.file.replace("{subject}", part.subject)
    if name.startswith("./"):
        raise UserError(
            f"{benchmark.folder}/{name[2:]}{ANY_SUFFIX} is missing: it belongs beside {benchmark.name}.yaml"
        )
    raise UserError(
        f"{data / name}{ANY_SUFFIX} is missing: the {split_name} rows of {benchmark.name}; save them there "
        f"from https://huggingface.co/datasets/{split.home.split(',')[0]} ({split.home})"
    )


def read(
    file: Path, columns: Sequence[str], form: FormName | None = None, choices: int | None = None
) -> list[Row]:
    """The rows of a file, each with all the columns, of one type, and with an answer among its choices.

    Args:
        file: with one of SUFFIXES.
        columns: that each row must have.
        form: of the rows, as in `row_checks.fault`; `meetings` may be as QMSum's authors publish them.
        choices: that each question must have.

    Raises:
        UserError: a row is malformed or cannot be answered (file and line are named), or there is none.
    """
    rows = row_files.read(file, row_checks.texts_of(columns, form))
    if form == "meetings" and rows and "meeting_transcripts" in rows[0][1]:
        rows = [(where, row) for where, meeting in rows for row in _queries(file, where, meeting)]
    for where, row in rows:
        if reason := row_checks.fault(row, columns, rows[0][1], choices, form):
            raise UserError(f"{file}, {where}: {reason}")
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

    refusals = (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError)
    try:
        return datasets.Dataset.from_list(rows)
    except refusals as error:
        for number, row in enumerate(rows[1:], 2):
            try:
                datasets.Dataset.from_list([rows[0], row])
            except refusals as reason:
                raise UserError(
                    f"{file}, row {number}: not of the form of the first row ({first_line(reason, 200)})"
                ) from None
        raise UserError(f"{file}: the rows are not of one form ({error})") from None


def source(file: Path, rows: int, official: int | None) -> DataSource:
    """Where the rows came from.

    Args:
        file: that they were read from.
        rows: how many there are.
        official: how many the published set has.
    """
    return DataSource(file=str(file), rows=rows, official_rows=official, sha256=store.sha256(file))


def _queries(file: Path, where: str, meeting: Row) -> list[Row]:
    """A meeting as Yale-LILY/QMSum publishes it → one row a query, in LongBench's columns."""
    try:
        turns = [f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]]
        queries = [*meeting["general_query_list"], *meeting["specific_query_list"]]
        return [
            {"context": "\n".join(turns), "question": query["query"], "answers": [query["answer"]]}
            for query in queries
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}, {where}: no meeting of QMSum: it lacks {error}") from None
