"""Whether a benchmark's row can be answered: its choices are there, and the right answer is one of them.

lm-eval scores a row whose answer is no choice as a wrong answer, or takes index −1 as the last one, and says
nothing but a warning. What a task's columns mean is its form, which the benchmark's YAML names: other tasks
may have columns of the same names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.models.json_lines import Row

FormName = Literal["arc", "mmlu", "hellaswag", "boolq", "truthfulqa", "worked", "meetings", "text"]
"""The forms that a benchmark's YAML may name; what has none is read as it stands."""
_NUMBER = re.compile(r"[-$]{0,2}[0-9.,]*[0-9][0-9.,]*\s*")


@dataclass(frozen=True, slots=True)
class RowForm:
    """What the columns of a task's rows hold.

    Attributes:
        values: columns of numbers, lists or objects; all others hold text, whatever it looks like.
        check: a row and the number of its choices → what is wrong with it.
        texts: columns of text that the check reads.
    """

    values: frozenset[str]
    check: Callable[[Row, int | None], str | None]
    texts: frozenset[str] = frozenset()


def texts_of(columns: Sequence[str], form: FormName | None) -> list[str]:
    """Those of a task's columns that hold text."""
    return [column for column in columns if form and column not in FORMS[form].values]


def fault(
    row: Row, columns: Sequence[str], first: Row, choices: int | None = None, form: FormName | None = None
) -> str | None:
    """What is wrong with a row, in words; None where nothing is.

    Args:
        row: of the file.
        columns: that the task reads.
        first: the file's first row, whose types the others have.
        choices: how many a question has; None for any number.
        form: of the rows; None for a task whose columns mean what nobody here knows.
    """
    for column in columns:
        value = row.get(column)
        if value is None:
            return f"no {column!r}; a row has the columns {', '.join(columns)}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{column!r} is {value}, no value"
        if type(value) is not type(first[column]):
            return f"{column!r} is {_kind(value)}, in the first row it is {_kind(first[column])}"
    if form is None:
        return None
    for column in texts_of(columns, form):
        if not isinstance(row[column], str):
            return f"{column!r} is {_kind(row[column])}, not text"
    return FORMS[form].check(row, choices)


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "an integer", float: "a fraction", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)


def _worked(row: Row, count: int | None) -> str | None:
    """Why nothing that a model writes equals an answer of GSM8K: lm-eval compares what is behind `#### `."""
    del count
    number = re.sub(r"(?s).*#### ", "", str(row["answer"]))
    if _NUMBER.fullmatch(number):
        return None
    return f"'answer' ends with {number[-40:]!r}, not with a number behind '#### '"


def _texts(value: Any, column: str, *, blank: bool = False, count: int | None = None) -> str | None:
    """Why a value is no list of choices."""
    if not isinstance(value, list):
        form = "; in a CSV a list is written as JSON" if isinstance(value, str) else ""
        return f"{column!r} is {_kind(value)}, not a list{form}"
    if not value:
        return f"{column!r} is empty"
    for number, text in enumerate(value, 1):
        if not isinstance(text, str):
            return f"{column!r}: its entry {number} is {_kind(text)}, not text"
        if not (blank or text.strip()):
            return f"{column!r}: its entry {number} is blank"
    if count is not None and len(value) != count:
        return f"{column!r} has {len(value)} entries, not {count}"
    return None


def _index(value: Any, column: str, count: int) -> str | None:
    """Why a value is no index of `count` choices; HellaSwag has it as text."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if type(value) is not int:
        return f"{column!r} is {value!r:.40}, not the index of a choice"
    if not 0 <= value < count:
        return f"{column!r} is {value}, and the {count} choices are 0 to {count - 1}"
    return None


def _arc(row: Row, count: int | None) -> str | None:
    choices, key = row["choices"], row["answerKey"]
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        return "'choices' is no object with the lists 'text' and 'label'"
    labels, texts = choices["label"], choices["text"]
    if reason := _texts(texts, "choices.text", count=count) or _texts(labels, "choices.label"):
        return reason
    if len(labels) != len(texts):
        return f"'choices' has {len(texts)} texts and {len(labels)} labels"
    if len(set(labels)) != len(labels):
        return f"two choices have one label ({', '.join(labels)})"
    if key not in labels:
        return f"'answerKey' is {key!r:.40}, none of the choices' labels ({', '.join(labels)})"
    return None


def _mmlu(row: Row, count: int | None) -> str | None:
    # Some of MMLU's own choices are blank; they are only shown, the letters are scored.
    reason = _texts(row["choices"], "choices", blank=True, count=count)
    if not reason and isinstance(row["answer"], str):
        return f"'answer' is {row['answer']!r:.40}, not the index of a choice"
    return reason or _index(row["answer"], "answer", len(row["choices"]))


def _hellaswag(row: Row, count: int | None) -> str | None:
    return _texts(row["endings"], "endings", count=count) or _index(
        row["label"], "label", len(row["endings"])
    )


def _boolq(row: Row, count: int | None) -> str | None:
    del count
    label = row["label"]
    return None if type(label) in (bool, int) and label in (0, 1) else f"'label' is {label!r:.40}, not 0 or 1"


def _truthfulqa(row: Row, count: int | None) -> str | None:
    targets = row["mc2_targets"]
    if not isinstance(targets, dict) or not {"choices", "labels"} <= targets.keys():
        return "'mc2_targets' is no object with the lists 'choices' and 'labels'"
    labels, texts = targets["labels"], targets["choices"]
    if reason := _texts(texts, "mc2_targets.choices", count=count):
        return reason
    if not isinstance(labels, list) or len(labels) != len(texts):
        return "'mc2_targets' has not one label for each choice"
    if not all(type(label) is int and label in (0, 1) for label in labels):
        return "'mc2_targets': a label is not 0 or 1"
    if 1 not in labels:
        return "'mc2_targets': no choice is true"
    return None


def _qmsum(row: Row, count: int | None) -> str | None:
    del count
    return _texts(row["answers"], "answers")


def _text(row: Row, count: int | None) -> None:
    del row, count


FORMS: dict[FormName, RowForm] = {
    "arc": RowForm(frozenset({"choices"}), _arc, frozenset({"answerKey"})),
    "mmlu": RowForm(frozenset({"choices", "answer"}), _mmlu),
    "hellaswag": RowForm(frozenset({"endings", "label"}), _hellaswag),
    "boolq": RowForm(frozenset({"label"}), _boolq),
    "truthfulqa": RowForm(frozenset({"mc2_targets"}), _truthfulqa),
    "worked": RowForm(frozenset({"answer"}), _worked),
    "meetings": RowForm(frozenset({"answers"}), _qmsum),
    "text": RowForm(frozenset(), _text),
}
"""`worked` is GSM8K's: an answer is its working, then `#### ` and a number. `meetings` is QMSum's."""
