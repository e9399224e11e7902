"""Runs a plan: finished jobs are passed over, a failure is recorded and the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.store.processes import stoppable
from pipeline.sweep import done, overview, plan
from pipeline.sweep import recipe as recipes
from pipeline.sweep.jobs import Job
from pipeline.sweep.ledger import DONE, FAILED, RUNNING, WAITING, JobStatus, Ledger, Rates, alone
from pipeline.sweep.local import JobPool, LocalPool, Outcome
from pipeline.sweep.progress import ProgressView
from pipeline.sweep.sections import Recipe
from pipeline.types import UserError

POLL = 0.5
"""Seconds between two looks at what runs, while nothing ends."""
INFORMING = ("export", "calibrate", "select")
"""Stages after which more may be known of the grid."""
IsDone = Callable[[Job, Recipe], bool]


def dry_run(path: Path) -> overview.Overview:
    """What a sweep of the recipe would do; starts nothing and writes nothing.

    Raises:
        UserError: the recipe cannot be read.
    """
    recipe = recipes.read(path)
    return overview.of(plan.make(recipe, store.Project().sweep(path.stem)), recipe, Rates())


def sweep(
    path: Path,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    limit: int | None = None,
    pool: JobPool | None = None,
) -> Ledger:
    """Runs every job of the recipe's grid that is not done, in the project of the current directory.

    Args:
        path: the recipe.
        jobs: side by side on one machine; one for every four cores by default.
        ray: address of a Ray cluster, or 'local' to start one here; None uses processes of this machine.
        limit: jobs that are run at most; the others wait for the next call.
        pool: where jobs run, in place of the above.

    Returns:
        The ledger; its failed jobs are what went wrong.

    Raises:
        UserError: the recipe cannot be read, another sweep of it runs, or Ray is not there.
    """
    if (jobs is not None and jobs < 1) or (limit is not None and limit < 1):
        raise UserError("--jobs and --limit must be at least 1")
    recipe = recipes.read(path)
    folder = store.Project().sweep(path.stem)
    slots = jobs or max(1, (os.cpu_count() or 1) // 4)
    # Stopped politely, a sweep kills its jobs and leaves a whole ledger.
    with alone(folder), stoppable(), closing(pool or _pool(recipe, ray, slots, folder / "logs")) as workers:
        ledger = Ledger.open(path)
        with ProgressView(path.stem, ledger) as view:
            Sweep(recipe, ledger, workers, view, limit).run()
    return ledger


def _pool(recipe: Recipe, ray: str | None, slots: int, logs: Path) -> JobPool:
    if ray is None:
        return LocalPool(slots, logs)
    from pipeline.sweep.ray_pool import RayPool  # an extra

    return RayPool(ray, slots, logs, recipe.build.accelerator)


@dataclass(slots=True)
class Sweep:
    """One run of a recipe.

    Attributes:
        limit: jobs that are started at most.
        is_done: whether a job's outputs are there; tests bring their own.
        started: jobs that have been started.
    """

    recipe: Recipe
    ledger: Ledger
    pool: JobPool
    view: ProgressView
    limit: int | None = None
    is_done: IsDone = done.is_done
    started: int = 0

    def run(self) -> None:
        """Until nothing runs and nothing can start."""
        self._plan()
        try:
            while True:
                while self._start():  # a job that turns out to be done may let others start
                    self.ledger.write()
                if not self.ledger.count(RUNNING):
                    break
                outcomes = self.pool.ended(POLL)
                for outcome in outcomes:
                    self._record(outcome)
                if self.ledger.pending and any(
                    self.ledger.jobs[outcome.id].stage in INFORMING for outcome in outcomes
                ):
                    self._plan()
                if outcomes:
                    self.ledger.write()
                self.view.update()
        finally:
            for status in self.ledger.states.values():
                if status.state == RUNNING:
                    status.state, status.error = WAITING, "stopped while it ran"
            self.ledger.write()
            self.view.pending(self.ledger.pending)

    def _plan(self) -> None:
        """Plans with what is known now, and marks what is done."""
        new = plan.make(self.recipe, self.ledger.folder)
        self.ledger.pending = new.pending
        for job in self.ledger.take(new.jobs):
            # Behind a job that will run, it is asked again when its turn comes.
            if not job.inline and self.ledger.waits_for(job) is None and self.is_done(job, self.recipe):
                self.ledger.mark_done(job)
        self.ledger.write()
        self.view.update()

    def _start(self) -> bool:
        """Starts what can start, measurements of time after all else → whether anything changed."""
        has_changed = False
        for job in self._ready():
            if self.limit is not None and self.started >= self.limit:
                self.ledger.states[job.id].error = f"not started: --limit {self.limit}"
                continue
            if not self.pool.takes(job):
                if not job.exclusive:
                    break  # a measurement must not slip in before jobs that are only waiting for a slot
                continue
            has_changed = True
            # A job that has ended meanwhile may have done it: base is measured beside every variant.
            if self.is_done(job, self.recipe):
                self.ledger.mark_done(job)
                continue
            self.started += 1
            self.ledger.states[job.id] = JobStatus(RUNNING)
            self.pool.start(job)
            self.view.begins(job)
        return has_changed

    def _ready(self) -> list[Job]:
        """Jobs that wait for nothing, measurements of time last."""
        states, jobs = self.ledger.states, self.ledger.jobs.values()
        waiting = [job for job in jobs if states[job.id].state == WAITING]
        ready = [job for job in waiting if self.ledger.waits_for(job) is None]
        return sorted(ready, key=lambda job: job.exclusive)

    def _record(self, outcome: Outcome) -> None:
        job = self.ledger.jobs[outcome.id]
        error = outcome.error
        if error is None and not self.is_done(job, self.recipe):
            error = f"exited with 0, and {', '.join(map(str, job.outputs))} is not what this recipe asks for"
        self.ledger.states[job.id] = JobStatus(FAILED if error else DONE, error, round(outcome.seconds, 3))
        self.view.ends(job)
