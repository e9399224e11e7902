"""Benchmark rows of a few words, published rows where they are there, and questions of lm-eval's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

WORDS = [
    "time",
    "people",
    "way",
    "water",
    "day",
    "year",
    "work",
    "place",
    "world",
    "life",
    "hand",
    "part",
    "child",
    "eye",
    "woman",
    "man",
    "week",
    "case",
    "point",
    "number",
]

DATA = Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data")).resolve()
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no benchmark rows at {DATA}; set PIPELINE_TEST_DATA"
)

ARC_ROW = {
    "id": "a",
    "question": "Why?",
    "choices": {"text": ["x", "y"], "label": ["A", "B"]},
    "answerKey": "B",
}


def lines(*rows: dict[str, Any]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def put(file: Path, *rows: dict[str, Any]) -> Path:
    """Writes rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(lines(*rows))
    return file


def arc(data: Path, test: str, train: str | None = None) -> Path:
    """Writes the files of ARC into a data folder."""
    folder = data / "arc_challenge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text(test)
    if train is not None:
        (folder / "train.jsonl").write_text(train)
    return data


def arc_question(k: int) -> dict[str, Any]:
    """A question of ARC with four one-word choices."""
    words = [WORDS[(k + step) % len(WORDS)] for step in (1, 3, 7, 11)]
    return {
        "id": f"q{k}",
        "question": f"Which {WORDS[k % 20]} comes after {k}?",
        "choices": {"text": words, "label": list("ABCD")},
        "answerKey": "ABCD"[k % 4],
    }


def mmlu_rows(subject: str) -> list[dict[str, Any]]:
    """Twelve questions of one subject."""
    return [
        {"question": f"{subject} {word}?", "choices": WORDS[k : k + 4], "answer": k % 4}
        for k, word in enumerate(WORDS[:12])
    ]


def write_rows(data: Path) -> Path:
    """A data folder: 12 questions of ARC, 20 of BoolQ, 2 subjects of MMLU, 3 of GSM8K, 6 texts of C4."""
    arc(
        data,
        lines(*map(arc_question, range(12))),
        lines(*map(arc_question, range(50, 90))),
    )
    passages = [
        {"question": f"is {word} good", "passage": f"{word} -- A {word} is good.", "label": k % 2}
        for k, word in enumerate(WORDS)
    ]
    put(data / "boolq" / "validation.jsonl", *passages)
    sums = [{"question": f"{k} and 1?", "answer": f"{k + 1}\n#### {k + 1}"} for k in range(16)]
    put(data / "gsm8k" / "train.jsonl", *sums)
    put(data / "gsm8k" / "test.jsonl", *({**row, "question": f"{row['question']}?"} for row in sums[:3]))
    put(data / "c4" / "validation.jsonl", *({"text": " ".join(WORDS[k:] + WORDS[:k])} for k in range(6)))
    for subject in ("anatomy", "virology"):
        rows = mmlu_rows(subject)
        put(data / "mmlu" / subject / "dev.jsonl", *rows[:5])
        put(data / "mmlu" / subject / "test.jsonl", *rows[5:])
    return data


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    """Requests of one task, a document each."""
    return [
        Instance(kind, {}, texts, 0, ("corner", number, 1))  # type: ignore[arg-type]
        for number, texts in enumerate(arguments)
    ]
