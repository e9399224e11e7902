"""The questions of one call: which have an answer, which failed, and how they are cut into windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol, Self

from lm_eval.api.instance import Instance

from pipeline.evals.score.journal import Journal, StoredAnswer
from pipeline.evals.score.loglikelihoods import ScoringError
from pipeline.evals.score.words import TextPair
from pipeline.evals.score.work import Work

WINDOW = 2_000_000
"""Characters of the requests that are tokenised, and whose prefixes are searched, at a time."""
GROUP = WINDOW // 8
"""Characters of whole texts that are tokenised and scored at a time."""
NAMED_FAILURES = 5


class ProgressListener(Protocol):
    """Shows how far the questions are."""

    def begin(self, requests: list[Instance]) -> None:
        """These questions are asked now."""

    def done(self, request: Instance) -> None:
        """This one has its answer, or failed."""


class Questions:
    """The questions of one call, by key. Answers go into the journals once a second, and when the block ends.

    Args:
        journals: head → its answers.
        keys: of the requests, in their order.
        requests: lm-eval's.
        progress: hears of every request that is finished.
        spent: what went through the model so far; what it grows by is kept with the answers.

    Raises:
        ScoringError: at the end of the block, where some failed; all others' answers are kept then.
    """

    def __init__(
        self,
        journals: Mapping[str, Journal],
        keys: list[str],
        requests: list[Instance],
        progress: ProgressListener | None,
        spent: Callable[[], Work] = Work,
    ) -> None:
        self._journals, self._keys, self._progress = journals, keys, progress
        self._requests: dict[str, list[Instance]] = {}
        for key, request in zip(keys, requests, strict=True):
            self._requests.setdefault(key, []).append(request)
        self.missing = {
            key for key in keys if not all(key in journal.answers for journal in journals.values())
        }
        self._failures: dict[str, ScoringError] = {}
        self._unwritten: dict[str, dict[str, StoredAnswer]] = {head: {} for head in journals}
        self._spent, self._counted = spent, replace(spent())
        self._write_time = self._counted_time = time.monotonic()
        if progress is not None:
            progress.begin(requests)
        for key in self._requests:
            if key in self.missing and not all(map(is_unicode, self._requests[key][0].args)):
                self.finish(key, ScoringError("its text is no Unicode: half a surrogate pair"))
        for key in self._requests.keys() - self.missing:
            self._report(key)

    def finish(self, key: str, outcome: Mapping[str, tuple[float, object]] | ScoringError) -> None:
        """Takes the answer of every head to one question, or the reason why there is none."""
        if isinstance(outcome, ScoringError):
            self._failures[key] = outcome
            self.missing.discard(key)
            self._report(key)
        else:
            self.keep(key, {head: list(answer) for head, answer in outcome.items()})

    def keep(self, key: str, answers: Mapping[str, StoredAnswer]) -> None:
        """Takes the answer of every head to one question, in the form that journals have."""
        for head, answer in answers.items():
            self._unwritten[head][key] = answer
        self.missing.discard(key)
        self._report(key)
        if time.monotonic() > self._write_time + 1:
            self._write()

    def _report(self, key: str) -> None:
        if self._progress is not None:
            for request in self._requests[key]:
                self._progress.done(request)

    def _write(self) -> None:
        self._write_time = time.monotonic()
        if not any(self._unwritten.values()):
            return
        spent = replace(self._spent())
        work = spent.since(self._counted)
        work.seconds = self._write_time - self._counted_time
        for head, journal in self._journals.items():
            journal.add(self._unwritten[head], work.share(len(self._journals)))
            self._unwritten[head] = {}
        self._counted, self._counted_time = spent, self._write_time

    def answers(self) -> list[StoredAnswer]:
        """The first head's answers, in the order of the requests."""
        journal = next(iter(self._journals.values()))
        return [journal.answers[key] for key in self._keys]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._write()
        if kind is None and self._failures:
            raise ScoringError(self._failure_message())

    def _failure_message(self) -> str:
        reasons = {
            f"{request.task_name} {request.doc_id}": reason
            for key, reason in self._failures.items()
            for request in self._requests[key]
        }
        by_reason: dict[str, list[str]] = {}
        for document, reason in list(reasons.items())[:NAMED_FAILURES]:
            by_reason.setdefault(str(reason), []).append(document)
        named = [f"{', '.join(documents)}: {reason}" for reason, documents in by_reason.items()]
        others = "; …" if len(reasons) > NAMED_FAILURES else ""
        return f"{len(reasons)} documents could not be scored: {'; '.join(named)}{others}"


def is_unicode(argument: object) -> bool:
    """Whether an argument of a request can be tokenised, as far as it is text."""
    try:
        str(argument).encode()
    except UnicodeEncodeError:
        return False
    return True


def windows(pairs: list[TextPair]) -> Iterator[list[TextPair]]:
    """Windows of about WINDOW characters; the continuations of one context stay together."""
    window, size = list[TextPair](), 0
    for number, pair in enumerate(pairs):
        is_new_context = not number or pairs[number - 1][0] != pair[0]
        if window and is_new_context and size > WINDOW:
            yield window
            window, size = [], 0
        window.append(pair)
        size += len(pair[1]) + (len(pair[0]) if is_new_context else 0)
    if window:
        yield window


def text_groups(keys: list[str], size: Callable[[str], int]) -> Iterator[list[str]]:
    """Runs of texts of about GROUP characters.

    Args:
        keys: of the texts.
        size: characters of the text with a key.
    """
    group, total = list[str](), 0
    for key in keys:
        if group and total > GROUP:
            yield group
            group, total = [], 0
        group.append(key)
        total += size(key)
    if group:
        yield group
