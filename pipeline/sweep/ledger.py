"""The ledger of a sweep, evals/sweeps/<recipe>/ledger.json: every job, how it stands, what it took. Written after each change.

What is done is told by digests (`done`), never by the ledger: it is a record for people and for `pipeline report`, and the
source of the rates that plans go by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline import store
from pipeline.sweep.jobs import Job, Pending
from pipeline.types import UserError

DONE, FAILED, WAITING, RUNNING, SHARED = "done", "failed", "waiting", "running", "shared"


@dataclass(slots=True)
class State:
    """How one job stands; seconds are of the run that did it, None where it was found done."""

    state: str = WAITING
    error: str | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Ledger:
    """The jobs of a sweep in the order of the plan, and their states."""

    recipe: Path
    folder: Path
    recipe_sha256: str
    jobs: dict[str, Job] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)
    """Job id → seconds that an earlier run of this sweep took."""
    pending: list[Pending] = field(default_factory=list)

    @classmethod
    def open(cls, recipe: Path) -> Ledger:
        """An empty one for this recipe, which knows what jobs took before."""
        folder = store.sweep_dir(recipe.stem)
        held = _jobs(folder / "ledger.json")
        return cls(
            recipe,
            folder,
            store.sha256(recipe),
            known={job["id"]: job["seconds"] for job in held if job.get("seconds")},
        )

    def take(self, jobs: list[Job]) -> list[Job]:
        """Takes a plan's jobs over; those that were not known before come back."""
        new = [job for job in jobs if job.id not in self.states]
        self.jobs = {job.id: job for job in jobs}
        for job in new:
            state = SHARED if job.shared else DONE if job.inline else WAITING
            self.states[job.id] = State(state, None, 0.0 if job.inline else None)
        return new

    def waits_for(self, job: Job) -> str | None:
        """The id of a job that must come first and has not; a failed one before others."""
        open_ones = [need for need in job.needs if self.states[need].state not in (DONE, SHARED)]
        return next(
            (need for need in open_ones if self.states[need].state == FAILED),
            open_ones[0] if open_ones else None,
        )

    def count(self, state: str) -> int:
        return sum(self.states[job.id].state == state for job in self.jobs.values() if not job.inline)

    @property
    def total(self) -> int:
        """Jobs that are processes."""
        return sum(not job.inline for job in self.jobs.values())

    def failed(self) -> list[Job]:
        return [job for job in self.jobs.values() if self.states[job.id].state == FAILED]

    def found_done(self, job: Job) -> None:
        self.states[job.id] = State(DONE, None, self.known.get(job.id))

    def write(self) -> None:
        record = {"what": "sweep", "recipe": str(self.recipe), "recipe_sha256": self.recipe_sha256}
        jobs = [self._entry(job) for job in self.jobs.values()]
        jobs += [_unknown(one) for one in self.pending if one.id not in self.jobs]
        store.write_json(self.folder / "ledger.json", {**record, "jobs": jobs})

    def _entry(self, job: Job) -> dict[str, Any]:
        held = self.states[job.id]
        error = held.error
        if held.state == WAITING and not error and (need := self.waits_for(job)):
            error = f"waiting: needs {need}"
        return {
            "id": job.id, "stage": job.stage, "model": job.model, "kind": job.cell.kind, "frac": job.cell.frac,
            "select": job.cell.select, "variant": job.variant, "precision": job.precision, "task": job.task, "state": held.state,
            "error": error if job.shared is None else f"shared with {job.shared}", "seconds": held.seconds,
            "command": list(job.command), "outputs": [str(path) for path in job.outputs],
        }  # fmt: skip


def _unknown(cell: Pending) -> dict[str, Any]:
    """The entry of a cell whose variant is not known yet: a gap that a report can name."""
    return {
        "id": cell.id, "stage": "select", "model": cell.model, "kind": cell.cell.kind, "frac": cell.cell.frac,
        "select": cell.cell.select, "variant": None, "precision": None, "task": None, "state": WAITING,
        "error": f"waiting: needs {cell.needs}", "seconds": None, "command": [], "outputs": [],
    }  # fmt: skip


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One sweep of a recipe at a time.

    Raises:
        UserError: another one runs.
    """
    with ExitStack() as held:
        try:
            held.enter_context(store.lock(folder, wait=False))
        except BlockingIOError:
            raise UserError(
                f"a sweep of this recipe runs already ({folder}); wait for it or stop it"
            ) from None
        yield


class Rates:
    """What jobs took: the mean over all ledgers here, of the same stage, model and task."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, str | None], list[float]] = {}
        for file in sorted(store.sweep_dir("x").parent.glob("*/ledger.json")):
            for job in _jobs(file):
                if job.get("state") == DONE and job.get("seconds") and job.get("stage") != "select":
                    self.add(str(job["stage"]), str(job["model"]), job.get("task"), float(job["seconds"]))

    def add(self, stage: str, model: str, task: str | None, seconds: float) -> None:
        self.held.setdefault((stage, model, task), []).append(seconds)

    def of(self, job: Job) -> float | None:
        """Seconds that the job will take, about; None where nothing like it has been measured."""
        found = self.held.get((job.stage, job.model, job.task))
        return fmean(found) if found else None


def _jobs(file: Path) -> list[dict[str, Any]]:
    """The entries of a ledger; none where it cannot be read, for it decides nothing."""
    try:
        held = store.read_json(file)
    except UserError:
        return []
    jobs = held.get("jobs") if isinstance(held, dict) else None
    return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []
