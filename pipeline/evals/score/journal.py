"""Answers that are finished, kept on disk as they come, so that a run that was killed goes on where it was.

lm-eval has `CachingLM` for this: one SQLite file for everything, values pickled, keyed by the text alone. A score must
not outlive the artefact or the protocol that it was measured with, and this file is read back; so: one file of JSON lines for
each artefact and protocol, appended line by line.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from pipeline import store


class Journal:
    """Key → answer, in memory and on disk. Two runs on the same artefact append to one file and do not disturb each other.

    Args:
        path: evals/results/<model>/<artefact>.answers-<digest>.jsonl; None keeps the answers in memory only.
        fresh: forget what is there.
    """

    def __init__(self, path: Path | None, fresh: bool = False) -> None:
        self.path = path
        self.answers: dict[str, Any] = {}
        self.file: BinaryIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        self.file = path.open("a+b")
        self.file.seek(0)
        for line in self.file:
            try:
                key, answer = json.loads(line)
            except (json.JSONDecodeError, ValueError, TypeError):
                continue  # the line that a killed run was writing; its question is asked again
            self.answers[key] = answer

    @staticmethod
    def key(kind: str, *parts: Hashable) -> str:
        """The name of a question: its kind and texts, digested."""
        return store.text_digest(json.dumps([kind, *parts], ensure_ascii=False))[:32]

    def add(self, answers: dict[str, Any]) -> None:
        """Keeps answers; they are on their way to the disk when this returns."""
        self.answers.update(answers)
        if self.file is None:
            return
        lines = "".join(json.dumps([key, answer]) + "\n" for key, answer in answers.items())
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            if self.file.seek(0, 2) and not _ends_with_newline(self.file):
                lines = "\n" + lines  # behind a line that was cut short
            self.file.write(lines.encode())
            self.file.flush()
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
