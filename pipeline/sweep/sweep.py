"""Runs a plan: what is done is passed over, what fails is written down and the rest goes on, what waits is planned again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pipeline import store
from pipeline.store.processes import stoppable
from pipeline.sweep import done, overview, plan
from pipeline.sweep import recipe as recipes
from pipeline.sweep.jobs import Job, Plan
from pipeline.sweep.ledger import DONE, FAILED, RUNNING, WAITING, Ledger, Rates, State, alone
from pipeline.sweep.local import LocalPool, Outcome, Pool
from pipeline.sweep.progress import View
from pipeline.sweep.recipe import Recipe
from pipeline.types import UserError

POLL = 0.5
"""Seconds between two looks at what runs, while nothing ends."""
TEACHES = ("export", "calibrate", "select")
"""Stages after which more may be known of the grid."""
Done = Callable[[Job, Recipe], bool]


def dry_run(path: Path) -> overview.Overview:
    """What a sweep of the recipe would do; starts nothing and writes nothing.

    Raises:
        UserError: the recipe cannot be read.
    """
    recipe = recipes.read(path)
    return overview.of(plan.make(recipe, store.sweep_dir(path.stem)), recipe, Rates())


def sweep(
    path: Path,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    limit: int | None = None,
    pool: Pool | None = None,
) -> Ledger:
    """Runs every job of the recipe's grid that is not done.

    Args:
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
    folder = store.sweep_dir(path.stem)
    slots = jobs or max(1, (os.cpu_count() or 1) // 4)
    with alone(folder), stoppable(), closing(pool or _pool(recipe, ray, slots, folder / "logs")) as where:
        ledger = Ledger.open(path)
        with View(path.stem, ledger) as view:
            Sweep(recipe, ledger, where, view, limit).run()
    return ledger


def _pool(recipe: Recipe, ray: str | None, slots: int, logs: Path) -> Pool:
    if ray is None:
        return LocalPool(slots, logs)
    from pipeline.sweep.ray_pool import RayPool  # an extra

    return RayPool(ray, slots, logs, recipe.build.accelerator)


class Sweep:
    """One run of a recipe.

    Args:
        is_done: tells whether a job's outputs are there; tests bring their own.
    """

    def __init__(
        self,
        recipe: Recipe,
        ledger: Ledger,
        pool: Pool,
        view: View,
        limit: int | None = None,
        is_done: Done = done.is_done,
    ) -> None:
        self.recipe, self.ledger, self.pool, self.view, self.limit = recipe, ledger, pool, view, limit
        self.is_done = is_done
        self.started = 0

    def run(self) -> None:
        """Until nothing runs and nothing can start."""
        planned = self._plan()
        try:
            while True:
                while self._start():  # what is found done in passing may let others start
                    self.ledger.write()
                running = self.ledger.count(RUNNING)
                if not running:
                    break
                outcomes = self.pool.ended(POLL)
                for outcome in outcomes:
                    self._take(outcome)
                if planned.pending and any(self.ledger.jobs[one.id].stage in TEACHES for one in outcomes):
                    planned = self._plan()
                if outcomes:
                    self.ledger.write()
                self.view.update()
        finally:
            for state in self.ledger.states.values():
                if state.state == RUNNING:
                    state.state, state.error = WAITING, "stopped while it ran"
            self.ledger.write()
            self.view.pending(planned.pending)

    def _plan(self) -> Plan:
        """Plans with what is known now, and passes over what is done."""
        planned = plan.make(self.recipe, self.ledger.folder)
        self.ledger.pending = planned.pending
        for job in self.ledger.take(planned.jobs):
            if not job.inline and self.ledger.waits_for(job) is None and self.is_done(job, self.recipe):
                self.ledger.found_done(
                    job
                )  # behind a job that will run, it is asked again when its turn comes
        self.ledger.write()
        self.view.update()
        return planned

    def _start(self) -> bool:
        """Starts what can start, measurements of time behind all else → whether anything changed."""
        ready = [
            job for job in self.ledger.jobs.values()
            if self.ledger.states[job.id].state == WAITING and self.ledger.waits_for(job) is None
        ]  # fmt: skip
        changed = False
        for job in sorted(ready, key=lambda job: job.exclusive):
            if self.limit is not None and self.started >= self.limit:
                self.ledger.states[job.id].error = f"not started: --limit {self.limit}"
                continue
            if not self.pool.takes(job):
                if not job.exclusive:
                    break  # a measurement must not slip in before jobs that are only waiting for a slot
                continue
            changed = True
            if self.is_done(
                job, self.recipe
            ):  # by a job that ended meanwhile: base is measured beside every variant
                self.ledger.found_done(job)
                continue
            self.started += 1
            self.ledger.states[job.id] = State(RUNNING)
            self.pool.start(job)
            self.view.begins(job)
        return changed

    def _take(self, outcome: Outcome) -> None:
        job = self.ledger.jobs[outcome.id]
        error = outcome.error
        if error is None and not self.is_done(job, self.recipe):
            error = f"exited with 0, and {', '.join(map(str, job.outputs))} is not what this recipe asks for"
        self.ledger.states[job.id] = State(FAILED if error else DONE, error, round(outcome.seconds, 3))
        self.view.ends(job)
