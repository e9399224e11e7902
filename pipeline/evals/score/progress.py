"""A progress bar over the documents of a run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lm_eval.api.instance import Instance
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.evals.score.harness import PipelineLM


class DocumentCount:
    """Counts the documents whose questions are all answered, on a progress bar.

    Args:
        bar: where a line is added.
        title: of the line.
    """

    def __init__(self, bar: Progress, title: str) -> None:
        self.bar, self.title = bar, title
        self.unanswered: Counter[tuple[str | None, int | None]] = Counter()
        self.task: TaskID | None = None
        self.start = time.monotonic()
        self.finished = 0

    def begin(self, requests: list[Instance]) -> None:
        """These questions are asked now."""
        self.unanswered.update((request.task_name, request.doc_id) for request in requests)
        if self.task is None:
            self.task = self.bar.add_task(self.title, total=0, rate="")
        self.bar.update(self.task, total=len(self.unanswered))

    def done(self, request: Instance) -> None:
        """This one has its answer, or failed."""
        document = (request.task_name, request.doc_id)
        self.unanswered[document] -= 1
        if not self.unanswered[document] and self.task is not None:
            self.finished += 1
            rate = self.finished / max(1e-6, time.monotonic() - self.start)
            self.bar.update(self.task, advance=1, rate=f"{rate:.1f} documents/s")


@contextmanager
def follow(model: PipelineLM, bar: Progress, title: str) -> Iterator[None]:
    """Shows how far the model is, on a line of the bar that is there as long as the block."""
    count = DocumentCount(bar, title)
    model.progress = count
    try:
        yield
    finally:
        model.progress = None
        if count.task is not None:
            bar.remove_task(count.task)


def document_bar() -> Progress:
    """A bar on stderr that leaves nothing behind."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
