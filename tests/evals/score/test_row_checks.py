from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.evals.score import row_checks
from tests.scoring import ARC_ROW

ARC = ("question", "choices", "answerKey")
MMLU = ("question", "choices", "answer")
HELLASWAG = ("endings", "label")
BOOLQ = ("question", "passage", "label")
TRUTHFULQA = ("question", "mc2_targets")
QMSUM = ("context", "question", "answers")


def _mmlu(**other: Any) -> dict[str, Any]:
    return {"question": "?", "choices": ["a", "b", "c", "d"], "answer": 3, **other}


def _boolq(label: object) -> dict[str, Any]:
    return {"question": "?", "passage": "p", "label": label}


def _truth(choices: object, labels: object) -> dict[str, Any]:
    return {"question": "?", "mc2_targets": {"choices": choices, "labels": labels}}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (ARC_ROW, ARC),
        (_mmlu(), MMLU),
        (_mmlu(choices=["a", "", "c", "d"]), MMLU),
        ({"endings": ["a", "b"], "label": "1"}, HELLASWAG),
        ({"endings": ["a", "b"], "label": 0}, HELLASWAG),
        (_boolq(0), BOOLQ),
        (_boolq(True), BOOLQ),
        (_truth(["a", "b", "c"], [1, 0, 1]), TRUTHFULQA),
        ({"context": "c", "question": "q", "answers": ["a"]}, QMSUM),
        ({"question": "q", "answer": "#### 5"}, ("question", "answer")),
    ],
)
def test_a_row_as_it_is_published_has_no_fault(row: dict[str, Any], columns: tuple[str, ...]) -> None:
    assert row_checks.fault(row, columns, row) is None


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({**ARC_ROW, "answerKey": "C"}, ARC, "'answerKey' is 'C', none of the choices' labels (A, B)"),
        ({**ARC_ROW, "choices": {"text": [], "label": []}}, ARC, "'choices.text' is empty"),
        ({**ARC_ROW, "choices": {"text": ["x"], "label": ["A", "B"]}}, ARC, "1 texts and 2 labels"),
        ({**ARC_ROW, "choices": {"text": ["x", "y"], "label": ["B", "B"]}}, ARC, "two choices have one"),
        ({**ARC_ROW, "choices": {"text": ["x", " "], "label": ["A", "B"]}}, ARC, "its entry 2 is blank"),
        ({**ARC_ROW, "choices": {"text": ["x", None], "label": ["A", "B"]}}, ARC, "its entry 2 is NoneType"),
        ({**ARC_ROW, "choices": {"text": ["x", "y"]}}, ARC, "no object with the lists"),
        ({**ARC_ROW, "choices": "['x']"}, ARC, "no object with the lists"),
        (_mmlu(answer=4), MMLU, "'answer' is 4, and the 4 choices are 0 to 3"),
        (_mmlu(answer=-1), MMLU, "'answer' is -1"),
        (_mmlu(answer=True), MMLU, "'answer' is True, not the index"),
        (_mmlu(answer=1.0), MMLU, "'answer' is 1.0, not the index"),
        (_mmlu(answer="D"), MMLU, "'answer' is 'D', not the index"),
        (_mmlu(choices=[]), MMLU, "'choices' is empty"),
        (_mmlu(choices="['a', 'b', 'c', 'd']"), MMLU, "'choices' is text, not a list; in a CSV"),
        ({"endings": ["a", "b"], "label": ""}, HELLASWAG, "'label' is ''"),
        ({"endings": ["a", "b"], "label": "2"}, HELLASWAG, "'label' is 2, and the 2 choices are 0 to 1"),
        (_boolq(2), BOOLQ, "'label' is 2, not 0 or 1"),
        (_boolq("1"), BOOLQ, "'label' is '1', not 0 or 1"),
        (_truth(["a", "b"], [1]), TRUTHFULQA, "not one label for each choice"),
        (_truth(["a", "b"], [0, 0]), TRUTHFULQA, "no choice is true"),
        (_truth(["a", "b"], [1, 2]), TRUTHFULQA, "a label is not 0 or 1"),
        ({"context": "c", "question": "q", "answers": []}, QMSUM, "'answers' is empty"),
        ({"text": math.nan}, ("text",), "'text' is nan, no value"),
        ({"text": None}, ("text",), "no 'text'"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_answered_is_named(
    row: dict[str, Any], columns: tuple[str, ...], message: str
) -> None:
    assert message in (row_checks.fault(row, columns, row) or "")


def test_a_row_has_the_types_of_the_first() -> None:
    fault = row_checks.fault({"text": 5}, ("text",), {"text": "a"})
    assert fault == "'text' is an integer, in the first row it is text"


@pytest.mark.parametrize(
    "answer",
    ["6 / 2 = <<6/2=3>>3\n#### 3", "#### 70,000", "so #### -2\n#### 10.5", "#### $18", "18", 18, "#### 5 "],
)
def test_a_worked_answer_ends_with_its_number(answer: object) -> None:
    row = {"question": "q", "answer": answer}
    assert row_checks.fault(row, ("question", "answer"), row, form=row_checks.WORKED) is None


@pytest.mark.parametrize("answer", ["it is 3", "", "####3", "#### 3 apples", "#### −3", "#### three"])
def test_a_worked_answer_that_no_text_can_equal_is_a_fault(answer: str) -> None:
    """lm-eval scores it as a wrong answer of the model: gsm8k was 0.00 ± 0.00 on such rows."""
    row = {"question": "q", "answer": answer}
    fault = row_checks.fault(row, ("question", "answer"), row, form=row_checks.WORKED)
    assert fault and fault.endswith("not with a number behind '#### '")
