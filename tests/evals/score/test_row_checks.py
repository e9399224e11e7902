from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.evals.score import row_checks
from pipeline.evals.score.row_checks import FormName
from tests.scoring import ARC_ROW

COLUMNS: dict[FormName | None, tuple[str, ...]] = {
    "arc": ("question", "choices", "answerKey"),
    "mmlu": ("question", "choices", "answer"),
    "hellaswag": ("endings", "label"),
    "boolq": ("question", "passage", "label"),
    "truthfulqa": ("question", "mc2_targets"),
    "meetings": ("context", "question", "answers"),
    "worked": ("question", "answer"),
    "text": ("text",),
}


def _mmlu(**other: Any) -> dict[str, Any]:
    return {"question": "?", "choices": ["a", "b", "c", "d"], "answer": 3, **other}


def _boolq(label: object) -> dict[str, Any]:
    return {"question": "?", "passage": "p", "label": label}


def _truth(choices: object, labels: object) -> dict[str, Any]:
    return {"question": "?", "mc2_targets": {"choices": choices, "labels": labels}}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (ARC_ROW, "arc"),
        (_mmlu(), "mmlu"),
        (_mmlu(choices=["a", "", "c", "d"]), "mmlu"),
        ({"endings": ["a", "b"], "label": "1"}, "hellaswag"),
        ({"endings": ["a", "b"], "label": 0}, "hellaswag"),
        (_boolq(0), "boolq"),
        (_boolq(True), "boolq"),
        (_truth(["a", "b", "c"], [1, 0, 1]), "truthfulqa"),
        ({"context": "c", "question": "q", "answers": ["a"]}, "meetings"),
        ({"question": "q", "answer": "#### 5"}, "worked"),
    ],
)
def test_a_row_as_it_is_published_has_no_fault(row: dict[str, Any], form: FormName) -> None:
    assert row_checks.fault(row, COLUMNS[form], row, form=form) is None


@pytest.mark.parametrize(
    ("row", "form", "message"),
    [
        ({**ARC_ROW, "answerKey": "C"}, "arc", "'answerKey' is 'C', none of the choices' labels (A, B)"),
        ({**ARC_ROW, "choices": {"text": [], "label": []}}, "arc", "'choices.text' is empty"),
        ({**ARC_ROW, "choices": {"text": ["x"], "label": ["A", "B"]}}, "arc", "1 texts and 2 labels"),
        ({**ARC_ROW, "choices": {"text": ["x", "y"], "label": ["B", "B"]}}, "arc", "two choices have one"),
        ({**ARC_ROW, "choices": {"text": ["x", " "], "label": ["A", "B"]}}, "arc", "its entry 2 is blank"),
        ({**ARC_ROW, "choices": {"text": ["x", None], "label": ["A", "B"]}}, "arc", "entry 2 is NoneType"),
        ({**ARC_ROW, "choices": {"text": ["x", "y"]}}, "arc", "no object with the lists"),
        ({**ARC_ROW, "choices": "['x']"}, "arc", "no object with the lists"),
        (_mmlu(answer=4), "mmlu", "'answer' is 4, and the 4 choices are 0 to 3"),
        (_mmlu(answer=-1), "mmlu", "'answer' is -1"),
        (_mmlu(answer=True), "mmlu", "'answer' is True, not the index"),
        (_mmlu(answer=1.0), "mmlu", "'answer' is 1.0, not the index"),
        (_mmlu(answer="D"), "mmlu", "'answer' is 'D', not the index"),
        (_mmlu(choices=[]), "mmlu", "'choices' is empty"),
        (_mmlu(choices="['a', 'b', 'c', 'd']"), "mmlu", "'choices' is text, not a list; in a CSV"),
        ({"endings": ["a", "b"], "label": ""}, "hellaswag", "'label' is ''"),
        ({"endings": ["a", "b"], "label": "2"}, "hellaswag", "'label' is 2, and the 2 choices are 0 to 1"),
        (_boolq(2), "boolq", "'label' is 2, not 0 or 1"),
        (_boolq("1"), "boolq", "'label' is '1', not 0 or 1"),
        (_truth(["a", "b"], [1]), "truthfulqa", "not one label for each choice"),
        (_truth(["a", "b"], [0, 0]), "truthfulqa", "no choice is true"),
        (_truth(["a", "b"], [1, 2]), "truthfulqa", "a label is not 0 or 1"),
        ({"context": "c", "question": "q", "answers": []}, "meetings", "'answers' is empty"),
        ({"text": math.nan}, "text", "'text' is nan, no value"),
        ({"text": None}, "text", "no 'text'"),
        ({"text": 5}, "text", "'text' is an integer, not text"),
        (_mmlu(question=7), "mmlu", "'question' is an integer, not text"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_answered_is_named(row: dict[str, Any], form: FormName, message: str) -> None:
    assert message in (row_checks.fault(row, COLUMNS[form], row, form=form) or "")


def test_columns_of_another_task_that_have_the_same_names_are_its_own() -> None:
    """A benchmark of the user's: ranks from 1, choices in one text; nobody here knows what they mean."""
    row = {"question": "?", "choices": "a; b; c", "answer": 3, "label": 7, "endings": "x", "passage": "p"}
    assert row_checks.fault(row, list(row), row) is None
    assert "'choices' is text, not a list" in (row_checks.fault(row, COLUMNS["mmlu"], row, form="mmlu") or "")


def test_a_row_has_the_types_of_the_first() -> None:
    fault = row_checks.fault({"text": 5}, ("text",), {"text": "a"})
    assert fault == "'text' is an integer, in the first row it is text"


@pytest.mark.parametrize(
    "answer",
    ["6 / 2 = <<6/2=3>>3\n#### 3", "#### 70,000", "so #### -2\n#### 10.5", "#### $18", "18", 18, "#### 5 "],
)
def test_a_worked_answer_ends_with_its_number(answer: object) -> None:
    row = {"question": "q", "answer": answer}
    assert row_checks.fault(row, ("question", "answer"), row, form="worked") is None


@pytest.mark.parametrize("answer", ["it is 3", "", "####3", "#### 3 apples", "#### −3", "#### three"])
def test_a_worked_answer_that_no_text_can_equal_is_a_fault(answer: str) -> None:
    """lm-eval scores it as a wrong answer of the model: gsm8k was 0.00 ± 0.00 on such rows."""
    row = {"question": "q", "answer": answer}
    fault = row_checks.fault(row, ("question", "answer"), row, form="worked")
    assert fault and fault.endswith("not with a number behind '#### '")
