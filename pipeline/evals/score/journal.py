"""Finished answers, written to disk as they come, so that a run that was killed resumes where it was.

lm-eval has `CachingLM` for this: one SQLite file for everything, values pickled, keyed by the text alone. A
score must not outlive the artefact or the protocol that it was measured with, and pickles are not safe to
read back. So each artefact and protocol has its own file of JSON lines, to which answers are appended.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from pipeline import store
from pipeline.evals.score.work import Work
from pipeline.store import records

MAX_BYTES = 2**32
"""Bytes of a file of answers at most. All of them are kept in memory."""

StoredAnswer = list[Any]
"""[log-likelihood in nats, greedy?], [log-likelihood in nats, tokens predicted] or [generated text]."""


class Journal:
    """Question key → answer, in memory and on disk. Two runs on one artefact may append to one file at once.

    A line is [key, answer, the answer's share of the work].

    Args:
        path: evals/results/<model>/<artefact>.answers-<digest>.jsonl; None keeps the answers in memory only.
        fresh: start without the answers of earlier runs.
    """

    def __init__(self, path: Path | None, fresh: bool = False) -> None:
        self.path = path
        self.answers: dict[str, StoredAnswer] = {}
        self.work: dict[str, Work] = {}
        self.file: BinaryIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            records.refuse_odd_file(path, MAX_BYTES)
        self.file = path.open("a+b")
        self.file.seek(0)
        for line in self.file:
            if entry := _entry(line):
                self.answers[entry[0]], self.work[entry[0]] = entry[1:]

    @staticmethod
    def key(kind: str, *parts: Hashable) -> str:
        """The name of a question: a digest of its kind and its texts."""
        return store.text_digest(json.dumps([kind, *parts]))[:32]

    def add(self, answers: Mapping[str, StoredAnswer], work: Work | None = None) -> None:
        """Keeps answers; when this returns, the kernel has them, so that they survive the process.

        Args:
            answers: by key.
            work: that they took together.
        """
        share = (work or Work()).share(max(1, len(answers)))
        self.answers.update(answers)
        self.work.update(dict.fromkeys(answers, share))
        if self.file is None:
            return
        rest = share.numbers()
        lines = "".join(json.dumps([key, answer, rest]) + "\n" for key, answer in answers.items())
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            if self.file.seek(0, 2) and not _ends_with_newline(self.file):
                lines = "\n" + lines  # the last line was cut short when its run was killed
            self.file.write(lines.encode())
            self.file.flush()
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _entry(line: bytes) -> tuple[str, StoredAnswer, Work] | None:
    """(key, answer, work) of a line; None where a killed run did not finish it: it is asked again."""
    try:
        key, answer, *rest = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    is_answer = isinstance(answer, list) and bool(answer) and all(map(_is_known, answer))
    return (key, answer, Work.of(rest[0] if rest else None)) if isinstance(key, str) and is_answer else None


def _is_known(value: object) -> bool:
    """Whether a part of an answer may stand in one: text, a truth value, or a number that is one."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
