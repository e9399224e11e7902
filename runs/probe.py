"""usage: probe.py [FOLDER]: writes the rows of the benchmark `probe`, the same ones each time.

The four files in evals/benchmarks/probe were made by it: 100 questions of arithmetic, 100 of brackets, and
the examples that stand before each.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

PAIRS = {"(": ")", "[": "]"}
ITEMS, SHOTS = 100, 8
Row = dict[str, str]


def arithmetic(draw: random.Random) -> Row:
    """A sum or a difference of two whole numbers, in GSM8K's columns; no result is below 0."""
    first, second = draw.randint(1, 20), draw.randint(1, 9)
    sign = draw.choice("+-")
    if sign == "-":
        first, second = max(first, second), min(first, second)
    result = first + second if sign == "+" else first - second
    question = f"What is {first} {sign} {second}?"
    return {"question": question, "answer": f"{first} {sign} {second} = {result}\n#### {result}"}


def brackets(draw: random.Random) -> Row:
    """An opening of brackets, one or two of them still open, in the columns of BIG-Bench Hard."""
    wanted, waiting = list[str](), list[str]()
    target = draw.randint(1, 2)
    while len(waiting) < target:
        if waiting and draw.random() < 0.4:
            wanted.append(PAIRS[waiting.pop()])
        else:
            waiting.append(draw.choice(list(PAIRS)))
            wanted.append(waiting[-1])
    question = f"Close the brackets: {' '.join(wanted)}"
    return {"input": question, "target": " ".join(PAIRS[one] for one in reversed(waiting))}


def rows(task: str) -> tuple[list[Row], list[Row]]:
    """(questions, examples) of 'arithmetic' or 'brackets'; no question twice."""
    draw, found = random.Random(f"probe {task}"), dict[str, Row]()
    while len(found) < ITEMS + SHOTS:
        row = arithmetic(draw) if task == "arithmetic" else brackets(draw)
        found.setdefault(next(iter(row.values())), row)
    everything = list(found.values())
    return everything[SHOTS:], everything[:SHOTS]


def main(folder: Path) -> None:
    """Writes the files."""
    for task in ("arithmetic", "brackets"):
        for name, lines in zip((task, f"{task}-examples"), rows(task), strict=True):
            text = "".join(json.dumps(row) + "\n" for row in lines)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "evals/benchmarks/probe"))
