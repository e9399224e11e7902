"""The questions of one call: which have an answer already, which failed, and how they are cut into windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lm_eval.api.instance import Instance

from pipeline.evals.score.batches import Answer, ScoringError
from pipeline.evals.score.journal import Journal
from pipeline.evals.score.words import Pair

WINDOW = 2_000_000
"""Characters of the requests that are tokenised, and whose prefixes are searched, at a time."""


class Progress(Protocol):
    """Who wants to know how far the questions are."""

    def begin(self, requests: list[Instance]) -> None: ...

    def done(self, request: Instance) -> None: ...


class Questions:
    """The questions of one call, by key; answers go into the journals once a second."""

    def __init__(
        self,
        journals: dict[str, Journal],
        keys: list[str],
        requests: list[Instance],
        progress: Progress | None,
    ) -> None:
        self.journals, self.keys, self.progress = journals, keys, progress
        self.waiting: dict[str, list[Instance]] = {}
        for key, request in zip(keys, requests, strict=True):
            self.waiting.setdefault(key, []).append(request)
        self.missing = {
            key for key in keys if not all(key in journal.answers for journal in journals.values())
        }
        self.failed: dict[str, ScoringError] = {}
        self.fresh: dict[str, dict[str, Any]] = {head: {} for head in journals}
        self.written = time.monotonic()
        if progress is not None:
            progress.begin(requests)
        for key in self.waiting.keys() - self.missing:
            self._tell(key)

    def take(self, key: str, answer: Answer | ScoringError) -> None:
        """One answer, or the reason why there is none."""
        if isinstance(answer, ScoringError):
            self.failed[key] = answer
        else:
            self.keep(key, {head: list(value) for head, value in answer.items()})
            return
        self.missing.discard(key)
        self._tell(key)

    def keep(self, key: str, values: dict[str, list[Any]]) -> None:
        """One answer of every head, on its way to the journals."""
        for head, value in values.items():
            self.fresh[head][key] = value
        self.missing.discard(key)
        self._tell(key)
        if time.monotonic() > self.written + 1:
            self.write()

    def _tell(self, key: str) -> None:
        if self.progress is not None:
            for request in self.waiting[key]:
                self.progress.done(request)

    def write(self) -> None:
        for head, journal in self.journals.items():
            if self.fresh[head]:
                journal.add(self.fresh[head])
            self.fresh[head] = {}
        self.written = time.monotonic()

    def answers(self) -> list[Any]:
        """The first head's answers, in the order of the requests."""
        journal = next(iter(self.journals.values()))
        return [journal.answers[key] for key in self.keys]

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.write()
        if kind is None and self.failed:
            lost = {
                f"{r.task_name} {r.doc_id}": reason
                for key, reason in self.failed.items()
                for r in self.waiting[key]
            }
            first = "; ".join(f"{document}: {reason}" for document, reason in list(lost.items())[:5])
            raise ScoringError(
                f"{len(lost)} documents could not be scored: {first}" + ("; …" if len(lost) > 5 else "")
            )


def windows(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Windows of about WINDOW characters; the continuations of one context stay together."""
    part, size = list[Pair](), 0
    for number, pair in enumerate(pairs):
        is_new = not number or pairs[number - 1][0] != pair[0]
        if part and is_new and size > WINDOW:
            yield part
            part, size = [], 0
        part.append(pair)
        size += len(pair[1]) + (len(pair[0]) if is_new else 0)
    if part:
        yield part


def groups(items: list[str], size: Callable[[str], int]) -> Iterator[list[str]]:
    """Runs of items of about WINDOW in size."""
    group, total = list[str](), 0
    for item in items:
        if group and total > WINDOW // 8:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    if group:
        yield group
