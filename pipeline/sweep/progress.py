"""What a person sees of a sweep: how far it is, how fast, what runs, what failed.

It goes to stderr; as plain lines where that is no terminal.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.sweep.jobs import Job, PendingCell
from pipeline.sweep.ledger import DONE, FAILED, RUNNING, WAITING, Ledger, Rates

SHOWN = 5
"""Failures that stand in the view; the ledger has all."""


def duration(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s', '12 s'."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


class ProgressView:
    """A live view on a terminal; a line for each job that ends elsewhere."""

    def __init__(self, name: str, ledger: Ledger, console: Console | None = None) -> None:
        self.name, self.ledger = name, ledger
        self.console = console or Console(stderr=True)
        self.since: dict[str, float] = {}
        self.began, self.ended = time.monotonic(), 0
        self.rates = Rates()
        self.live = Live(
            get_renderable=self._draw, console=self.console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def begins(self, job: Job) -> None:
        """A job has started."""
        self.since[job.id] = time.monotonic()

    def ends(self, job: Job) -> None:
        """A job has ended; the ledger knows how."""
        self.ended += 1
        self.since.pop(job.id, None)
        status = self.ledger.states[job.id]
        if status.state == DONE and status.seconds:
            self.rates.add(job.stage, job.model, job.task, status.seconds)
        verdict = "[green]done[/]  " if status.state == DONE else "[red]FAILED[/]"
        reason = f": {status.error}" if status.error else ""
        took = duration(status.seconds or 0)
        self.console.print(
            f"{verdict} {took:>10}  {self._count()}  {escape(job.id + reason)}", soft_wrap=True
        )

    def pending(self, cells: list[PendingCell]) -> None:
        """The cells that are not known at the end."""
        for cell in cells:
            self.console.print(
                f"[yellow]waiting[/] {escape(f'{cell.model} {cell.cell.words}: needs {cell.needs}')}",
                soft_wrap=True,
            )

    def update(self) -> None:
        """Draws it again."""
        if self.live.is_started:
            self.live.refresh()

    def _count(self) -> str:
        return f"{self.ledger.count(DONE)}/{self.ledger.total}"

    def left(self) -> float | None:
        """Seconds that the known jobs will take one after the other; None where one was never measured."""
        waiting = [
            job for job in self.ledger.jobs.values() if self.ledger.states[job.id].state in (WAITING, RUNNING)
        ]
        each = [self.rates.of(job) for job in waiting]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def _draw(self) -> Group:
        """Called by the view's own thread, which only reads."""
        done, failed = self.ledger.count(DONE), self.ledger.count(FAILED)
        minutes = (time.monotonic() - self.began) / 60
        left = self.left()
        words = f"sweep {self.name}: {done} of {self.ledger.total} jobs done" + (
            f", {failed} failed" if failed else ""
        )
        words += f", {self.ended / minutes:.1f} jobs a minute" if self.ended and minutes > 0.1 else ""
        words += f", about {duration(left)} left" if left else ""
        running = Table.grid(padding=(0, 2))
        for id, since in list(self.since.items()):
            running.add_row("runs", id, duration(time.monotonic() - since))
        lines = [
            Text(f"failed  {job.id}: {self.ledger.states[job.id].error}", "red")
            for job in self.ledger.failed()[-SHOWN:]
        ]
        return Group(
            Text(words), ProgressBar(max(1, self.ledger.total), done + failed, width=60), running, *lines
        )
