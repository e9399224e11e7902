from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.evals.score import row_files
from pipeline.models import json_lines
from pipeline.types import UserError


def _csv(text: str, *texts: str) -> list[tuple[str, row_files.Row]]:
    Path("rows.csv").write_bytes(text.encode())
    return row_files.read(Path("rows.csv"), texts)


def test_cells_keep_their_columns_and_lines(workdir: Path) -> None:
    text = '\ufeffquestion,choices,answer\r\n"A,\r\nor ""B""?","[""x"", ""y""]",1\r\n\r\n007,"[""z""]",0\r\n'
    assert _csv(text) == [
        ("line 2", {"question": 'A,\nor "B"?', "choices": ["x", "y"], "answer": 1}),
        ("line 5", {"question": "007", "choices": ["z"], "answer": 0}),
    ]


def test_columns_are_numbers_only_where_their_text_stays_the_same(workdir: Path) -> None:
    rows = _csv("a,b,c,d,answerKey,f\n1,01,1.50,True,1,-2\n10,2,2,False,2,0\n", "answerKey")
    assert [row for _, row in rows] == [
        {"a": 1, "b": "01", "c": "1.50", "d": True, "answerKey": "1", "f": -2},
        {"a": 10, "b": "2", "c": "2", "d": False, "answerKey": "2", "f": 0},
    ]


def test_cells_of_a_text_column_are_text(workdir: Path) -> None:
    """Questions that are all whole numbers ended in jinja's `int object has no attribute strip`."""
    ((_, row),) = _csv('question,choices,answer\n12,"[1, 2]",0\n', "question")
    assert row == {"question": "12", "choices": [1, 2], "answer": 0}
    ((_, row),) = _csv('question,b\n"[1, 2]",True\n', "question", "b")
    assert row == {"question": "[1, 2]", "b": "True"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2,\n3,4,\n", r"line 2: 3 cells, and the header names 2 columns \(a, b\); a comma too many"),
        ('a,b\n"x\ny",2\n3\n', "line 4: 1 cells, and the header names 2"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 cells"),
        ("a,a\n1,2\n", "two columns have the name 'a'"),
        ("a,,b\n1,2,3\n", "line 1: column 2 of the header has no name"),
        ("a,\n1,\n", "line 1: column 2 of the header has no name"),
        ('a,b\n1,2\n"x,3\n4,5\n', "line 3: a quoted cell is not closed"),
        ('a,b\n"x"y,3\n', "line 2: "),
        ("a,b\n1,2\n3,\0\n", "line 3: holds a NUL"),
        ('a\n"{""x"": 1, ""x"": 2}"\n', "line 2: the key 'x' stands there twice"),
        ("\n\n", "no CSV with a header line"),
    ],
)
def test_a_csv_that_does_not_fit_its_header_is_refused(text: str, message: str, workdir: Path) -> None:
    with pytest.raises(UserError, match=rf"^rows\.csv(:|,|) .*{message}|^rows\.csv[:,] {message}"):
        _csv(text)


def test_a_long_cell_is_read(workdir: Path) -> None:
    ((_, row),) = _csv(f"a,b\n{'x' * 300_000},1\n")
    assert len(row["a"]) == 300_000


def test_parquet_names_its_rows(workdir: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": ["x", None], "b": [[1], []]}), "rows.parquet")
    assert row_files.read(Path("rows.parquet")) == [
        ("row 1", {"a": "x", "b": [1]}),
        ("row 2", {"a": None, "b": []}),
    ]
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    parquet.write_table(twice, "twice.parquet")
    with pytest.raises(UserError, match="two columns have the name 'a'"):
        row_files.read(Path("twice.parquet"))
    damaged = bytearray(Path("rows.parquet").read_bytes())
    damaged[4:60] = b"\xff" * 56
    Path("damaged.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match="no parquet file"):
        row_files.read(Path("damaged.parquet"))


def test_parquet_is_a_file_and_unpacks_to_no_gigabytes(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    os.mkfifo("a.parquet")
    with pytest.raises(UserError, match="not a regular file"):
        row_files.read(Path("a.parquet"))
    parquet.write_table(pyarrow.table({"a": [str(i) for i in range(5000)]}), "b.parquet")
    monkeypatch.setattr(json_lines, "MAX_BYTES", 50_000)
    assert len(row_files.read(Path("b.parquet"))) == 5000
    parquet.write_table(pyarrow.table({"a": ["x" * 100_000] * 50}), "c.parquet")
    assert Path("c.parquet").stat().st_size < json_lines.MAX_BYTES
    with pytest.raises(UserError, match=r"c\.parquet holds .* bytes of rows"):
        row_files.read(Path("c.parquet"))
