from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.evals.score.journal import Journal
from pipeline.evals.score.work import Work
from pipeline.types import UserError


def test_two_writers_do_not_mix_and_a_torn_line_is_asked_again(workdir: Path) -> None:
    path = workdir / "answers.jsonl"
    with Journal(path) as one, Journal(path) as other:
        for k in range(50):
            one.add({f"a{k}": [float(k), True]})
            other.add({f"b{k}": [float(k), False]})
    with path.open("ab") as file:
        file.write(b'["c", [1.0, tr')
    with Journal(path) as again:
        assert len(again.answers) == 100 and again.answers["a7"] == [7.0, True]
        again.add({"d": [2.0, True]})
    with Journal(path) as last:
        assert len(last.answers) == 101 and last.answers["d"] == [2.0, True]
    assert not Journal(path, fresh=True).answers


def test_lines_of_another_form_are_passed_over(workdir: Path) -> None:
    """Answers that are no numbers among them: they would be scored."""
    path = workdir / "answers.jsonl"
    path.write_bytes(
        b'{"a": 1, "b": 2}\n["x"]\n[1, [2.0, true]]\n["e", 3]\n\xff\n["f", [4.0, false]]\n'
        b'["g", [NaN, true]]\n["h", [-Infinity, 3]]\n["i", []]\n["j", [[1.0], 2]]\n["k", [null]]\n'
    )
    with Journal(path) as journal:
        assert journal.answers == {"f": [4.0, False]} and journal.work == {"f": Work()}


def test_work_is_kept_with_the_answers(workdir: Path) -> None:
    path = workdir / "answers.jsonl"
    with Journal(path) as journal:
        journal.add({"a": [1.0, True], "b": [2.0, True]}, Work(tokens=5, seconds=1))
        journal.add({"c": [3.0, True]}, Work(tokens=7))
    with Journal(path) as again:
        assert again.work == journal.work and again.work["a"] == Work(tokens=2.5, seconds=0.5)
        assert Work.total(again.work.values()) == Work(tokens=12, seconds=1)


def test_keys_depend_on_kind_and_every_text() -> None:
    keys = {
        Journal.key("loglikelihood", "a", "b"),
        Journal.key("loglikelihood", "ab", ""),
        Journal.key("rolling", "a", "b"),
        Journal.key("loglikelihood", "a"),
    }
    assert len(keys) == 4 and Journal.key("rolling", "é") == Journal.key("rolling", "é")


def test_without_a_path_answers_stay_in_memory(workdir: Path) -> None:
    with Journal(None) as journal:
        journal.add({"a": ["text"]})
        assert journal.answers == {"a": ["text"]}
    assert not list(workdir.iterdir())


def test_what_is_no_file_is_not_read_for_ever(workdir: Path) -> None:
    os.mkfifo("a.jsonl")
    Path("b.jsonl").symlink_to("/dev/zero")
    for name in ("a.jsonl", "b.jsonl"):
        with pytest.raises(UserError, match=f"{name} is not a regular file"):
            Journal(Path(name))
