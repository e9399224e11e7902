"""The rows of the benchmark `probes`: right, balanced, and those that its script makes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "evals" / "benchmarks" / "probes"
PROBES = ("arithmetic", "brackets", "copy", "facts")
CLOSERS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def rows(probe: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{probe}.jsonl").read_text().splitlines()]


def right(row: dict[str, Any]) -> str:
    return str(row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])])


def question(row: dict[str, Any]) -> str:
    """The last line, without the solved examples."""
    return str(row["question_stem"].rpartition("\n")[2])


def is_closed(text: str) -> bool:
    """Whether brackets match: neighbours that do are taken out until none is left."""
    text = text.replace(" ", "")
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
        text = shorter
    return not text


def test_the_script_makes_the_rows_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "runs" / "probes.py", tmp_path], check=True)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FOLDER.glob("*.jsonl")}
    assert sorted(written) == [f"{probe}.jsonl" for probe in PROBES]


@pytest.mark.parametrize("probe", PROBES)
def test_200_questions_of_four_choices_and_no_place_is_right_more_often(probe: str) -> None:
    own = rows(probe)
    assert len(own) == len({row["question_stem"] for row in own}) == len({row["id"] for row in own}) == 200
    assert Counter(row["answerKey"] for row in own) == dict.fromkeys("ABCD", 50)
    for row in own:
        assert row["choices"]["label"] == list("ABCD") and len(set(row["choices"]["text"])) == 4


@pytest.mark.parametrize("probe", ["arithmetic", "brackets"])
def test_all_questions_stand_behind_the_same_eight_examples_none_of_them_asked(probe: str) -> None:
    own = rows(probe)
    (examples,) = {row["question_stem"].rpartition("\n")[0] for row in own}
    lines = examples.split("\n")
    assert len(lines) == 8
    for line in lines:
        assert not any(line.startswith(question(row) + " ") for row in own)
        assert is_closed(line) if probe == "brackets" else len({*map(value, line.split("="))}) == 1


def value(sums: str) -> int:
    assert re.fullmatch(r" ?\d+( \+ \d+)* ?", sums)
    return int(eval(sums))  # noqa: S307 - digits and + alone


def test_just_one_choice_of_a_sum_is_right_and_all_have_its_form() -> None:
    chains = 0
    for row in rows("arithmetic"):
        total = value(question(row).removesuffix("="))
        values = [{value(part) for part in choice.split("=")} for choice in row["choices"]["text"]]
        assert [number for number in values if total in number] == [{total}] and {total} == {
            *map(value, right(row).split("="))
        }
        # A wrong choice is a sum that holds: only its first number shows that it is the wrong one.
        assert all(len(number) == 1 for number in values)
        assert values == sorted(values, key=min)  # the right one is as often the lowest as the highest
        assert len({re.sub(r"\d", "9", choice) for choice in row["choices"]["text"]}) == 1
        numbers = re.findall(r"\d+", question(row))
        chains += len(numbers) == 3
        assert len(numbers) == 3 or {len(n) for n in numbers} == {2}
    assert 80 <= chains <= 120


def test_just_one_bracket_closes_the_innermost_open_one() -> None:
    behind_closed = 0
    for row in rows("brackets"):
        text = question(row)
        waiting = list[str]()
        for bracket in text.split():
            if bracket in CLOSERS:
                waiting.append(bracket)
            else:
                assert CLOSERS[waiting.pop()] == bracket
        rest = "".join(CLOSERS[bracket] for bracket in reversed(waiting))
        assert is_closed(text + rest) and rest[0] == right(row)
        assert not any(
            is_closed(text + choice + rest[1:]) for choice in row["choices"]["text"] if choice != right(row)
        )
        behind_closed += text[-1] in CLOSERS.values()
    assert 80 <= behind_closed <= 120


def test_the_right_word_is_the_next_of_the_list_that_is_begun_again() -> None:
    for row in rows("copy"):
        lists, filler, again = row["question_stem"].split("\n\n")
        words = {
            name: said.split(", ")
            for name, said in re.findall(r"^(Anna|Ben)'s list: (.*)\.$", lists, re.MULTILINE)
        }
        name, begun = re.fullmatch(r"(Anna|Ben)'s list again:(.*),", again).groups()  # type: ignore[union-attr]
        said = begun.strip().split(", ")
        own, other = words[name], words["Ben" if name == "Anna" else "Anna"]
        assert sorted(own) == sorted(other) and len(set(own)) == 8
        assert own[: len(said)] == said and own[len(said)] == right(row)
        assert set(row["choices"]["text"]) <= set(own[len(said) :])
        # The other list goes on with another word, which is among the choices.
        assert other[other.index(said[-1]) + 1] in set(row["choices"]["text"]) - {right(row)}
        assert not set(own) & set(re.findall(r"\w+", filler)) and len(filler.split()) > 130


def test_a_fact_has_choices_of_its_own_table() -> None:
    """The sentence's other questions have those choices as their answers, too."""
    sys.path.insert(0, str(ROOT / "runs"))
    try:
        import probes
    finally:
        sys.path.pop(0)
    facts = {
        sentence.format(subject.replace("_", " ")): (answer, {other for _, other in probes.pairs(table)})
        for sentence, table in probes.TABLES.items()
        for subject, answer in probes.pairs(table)
    }
    assert facts["The capital of France is"][0] == "Paris" and facts["The opposite of hot is"][0] == "cold"
    assert len(facts) >= 200
    for row in rows("facts"):
        answer, answers = facts[row["question_stem"]]
        assert right(row) == answer and set(row["choices"]["text"]) <= answers
