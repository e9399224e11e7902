from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.evals.score import benchmarks, local_data
from pipeline.types import UserError
from tests import scoring
from tests.scoring import ARC_ROW, lines

COLUMNS = ["question", "choices", "answerKey"]


def test_csv_and_parquet_hold_the_same_rows(workdir: Path) -> None:
    import pandas

    rows = [ARC_ROW, {**ARC_ROW, "id": "b", "question": 'A, or "B"?'}]
    flat = [{**row, "choices": json.dumps(row["choices"])} for row in rows]
    pandas.DataFrame(flat).to_csv("rows.csv", index=False)
    pandas.DataFrame(rows).to_parquet("rows.parquet")
    Path("rows.jsonl").write_text(lines(*rows))
    for name in ("rows.csv", "rows.parquet", "rows.jsonl"):
        read = local_data.read(Path(name), COLUMNS, "arc")
        assert [row["choices"]["text"] for row in read] == [["x", "y"]] * 2
        assert read[1]["question"] == 'A, or "B"?'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": 1}\n{bad\n', r"rows\.jsonl, line 2: not JSON"),
        (lines(ARC_ROW) + "\n" + lines({"question": "?", "choices": {}}), r"line 3: no 'answerKey'"),
        ("[1]\n", r"line 1: not a JSON object"),
        ("", "holds no row"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(text: str, message: str, workdir: Path) -> None:
    Path("rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        local_data.read(Path("rows.jsonl"), COLUMNS, "arc")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.jsonl", b"\xff\xfe", "no UTF-8 text"),
        ("rows.csv", b"", "no CSV with a header line"),
        ("rows.parquet", b"PAR1", "no parquet file"),
    ],
)
def test_files_of_another_form_are_one_line(name: str, data: bytes, message: str, workdir: Path) -> None:
    Path(name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        local_data.read(Path(name), COLUMNS, "arc")


def test_a_row_that_cannot_be_answered_is_refused_with_its_line(workdir: Path) -> None:
    data = Path("rows.jsonl")
    data.write_text(lines(ARC_ROW) + "\n" + lines({**ARC_ROW, "answerKey": "C"}))
    with pytest.raises(UserError, match=r"^rows\.jsonl, line 3: 'answerKey' is 'C', none of .* \(A, B\)$"):
        local_data.read(data, COLUMNS, "arc")


def test_the_number_of_choices_is_the_benchmarks(workdir: Path) -> None:
    mmlu = {"question": "?", "choices": ["a", "b", "c", "d", "e"], "answer": 1}
    file = scoring.put(Path("rows.jsonl"), mmlu)
    definition = benchmarks.find("mmlu_anatomy").parts[0].definition
    with pytest.raises(UserError, match="line 1: 'choices' has 5 entries, not 4"):
        local_data.read(file, definition.columns, definition.form, definition.choices)


def test_gsm8ks_answers_end_with_a_number(workdir: Path) -> None:
    file = scoring.put(Path("rows.jsonl"), {"question": "q", "answer": "It is 5."})
    definition = benchmarks.find("gsm8k").parts[0].definition
    with pytest.raises(UserError, match=r"line 1: 'answer' ends with 'It is 5\.', not with a number behind"):
        local_data.read(file, definition.columns, definition.form, definition.choices)


def test_a_row_of_another_form_than_the_first_is_named(workdir: Path) -> None:
    rows = [ARC_ROW, {**ARC_ROW, "choices": {"text": "x"}}]
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: not of the form of the first row"):
        local_data.dataset(Path("rows.jsonl"), rows)
    assert local_data.dataset(Path("rows.jsonl"), [ARC_ROW, ARC_ROW]).num_rows == 2


def test_missing_rows_say_where_to_get_them(workdir: Path) -> None:
    arc = benchmarks.find("arc")
    message = r"arc_challenge/test\.jsonl \(or \.csv, \.parquet\) .* https://huggingface.co/datasets/allenai/ai2_arc"
    with pytest.raises(UserError, match=message):
        local_data.require(arc, arc.parts[0], "test", workdir)
    anatomy = benchmarks.find("mmlu_anatomy")
    with pytest.raises(UserError, match=r"mmlu/anatomy/test\.jsonl"):
        local_data.require(anatomy, anatomy.parts[0], "test", workdir)


def test_a_file_beside_the_yaml_needs_no_data_folder() -> None:
    smoke = benchmarks.find("smoke")
    part = smoke.parts[0]
    file = local_data.file_of(smoke, part, next(iter(part.definition.data.values())), None)
    assert file is not None and file.parent == smoke.folder


def test_the_source_is_the_file_by_its_digest(workdir: Path) -> None:
    file = scoring.put(workdir / "rows.jsonl", ARC_ROW)
    source = local_data.source(file, 1, 1172)
    assert (source.file, source.rows, source.official_rows) == (str(file), 1, 1172)
    assert source.sha256 == store.sha256(file)


def test_meetings_of_qmsum_become_a_row_a_query(workdir: Path) -> None:
    meeting = {
        "meeting_transcripts": [{"speaker": "A", "content": "Hi."}, {"speaker": "B", "content": "Ho."}],
        "general_query_list": [{"query": "All?", "answer": "Yes."}],
        "specific_query_list": [{"query": "Who?", "answer": "A."}],
    }
    file = scoring.put(workdir / "rows.jsonl", meeting)
    assert local_data.read(file, ["context", "question", "answers"], "meetings") == [
        {"context": "A: Hi.\nB: Ho.", "question": "All?", "answers": ["Yes."]},
        {"context": "A: Hi.\nB: Ho.", "question": "Who?", "answers": ["A."]},
    ]
    bad = scoring.put(workdir / "bad.jsonl", meeting, {"meeting_transcripts": []})
    with pytest.raises(UserError, match="line 2: no meeting of QMSum: it lacks 'general_query_list'"):
        local_data.read(bad, ["context"], "meetings")


def test_questions_of_mmlu_that_are_all_whole_numbers(workdir: Path) -> None:
    definition = benchmarks.find("mmlu_anatomy").parts[0].definition
    Path("rows.csv").write_text('question,choices,answer\n12,"[""1"", ""2"", ""3"", ""4""]",3\n')
    (row,) = local_data.read(Path("rows.csv"), definition.columns, definition.form, definition.choices)
    assert row == {"question": "12", "choices": ["1", "2", "3", "4"], "answer": 3}
