"""The ledger of a sweep, evals/sweeps/<recipe>/ledger.json: every job, how it stands, how long it took.

It is written after each change. Digests say what is done (`done`), never the ledger: it is a record for
people and for `pipeline report`, and it has the times by which later plans are estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from pipeline import store
from pipeline.store import records
from pipeline.store.records import JobState, LedgerEntry, LedgerRecord
from pipeline.sweep.jobs import Job, PendingCell
from pipeline.types import UserError

DONE: JobState = "done"
FAILED: JobState = "failed"
WAITING: JobState = "waiting"
RUNNING: JobState = "running"
SHARED: JobState = "shared"
FILE = "ledger.json"


@dataclass(slots=True)
class JobStatus:
    """How one job stands.

    Attributes:
        error: why it is not done, in one line.
        seconds: of the run that did it; None where its results were there already.
    """

    state: JobState = WAITING
    error: str | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Ledger:
    """The jobs of a sweep in the order of the plan, and how they stand.

    Attributes:
        recipe: its file.
        folder: of the sweep.
        known_seconds: job id → seconds that an earlier run of this sweep took.
        pending: cells whose variant is not known yet.
    """

    recipe: Path
    folder: Path
    recipe_sha256: str
    jobs: dict[str, Job] = field(default_factory=dict)
    states: dict[str, JobStatus] = field(default_factory=dict)
    known_seconds: dict[str, float] = field(default_factory=dict)
    pending: list[PendingCell] = field(default_factory=list)

    @classmethod
    def open(cls, recipe: Path) -> Ledger:
        """An empty one for this recipe, which knows how long jobs took before."""
        folder = store.Project().sweep(recipe.stem)
        known = {entry.id: entry.seconds for entry in _entries(folder / FILE) if entry.seconds}
        return cls(recipe, folder, store.sha256(recipe), known_seconds=known)

    @property
    def file(self) -> Path:
        """Where it is written."""
        return self.folder / FILE

    @property
    def total(self) -> int:
        """Jobs that are processes."""
        return sum(not job.inline for job in self.jobs.values())

    def take(self, jobs: list[Job]) -> list[Job]:
        """Takes over a plan's jobs → those that were not known before."""
        new = [job for job in jobs if job.id not in self.states]
        self.jobs = {job.id: job for job in jobs}
        for job in new:
            state = SHARED if job.shared else DONE if job.inline else WAITING
            self.states[job.id] = JobStatus(state, None, 0.0 if job.inline else None)
        return new

    def waits_for(self, job: Job) -> str | None:
        """The id of a job that must come first and is not done; a failed one before others."""
        unfinished = [need for need in job.needs if self.states[need].state not in (DONE, SHARED)]
        failed = [need for need in unfinished if self.states[need].state == FAILED]
        return next(iter(failed or unfinished), None)

    def count(self, state: JobState) -> int:
        """Processes in this state."""
        return sum(self.states[job.id].state == state for job in self.jobs.values() if not job.inline)

    def failed(self) -> list[Job]:
        """The jobs that failed."""
        return [job for job in self.jobs.values() if self.states[job.id].state == FAILED]

    def mark_done(self, job: Job) -> None:
        """The job's results are there."""
        self.states[job.id] = JobStatus(DONE, None, self.known_seconds.get(job.id))

    def record(self) -> LedgerRecord:
        """What is written."""
        entries = [self._entry(job) for job in self.jobs.values()]
        entries += [_pending_entry(cell) for cell in self.pending if cell.id not in self.jobs]
        return LedgerRecord(recipe=str(self.recipe), recipe_sha256=self.recipe_sha256, jobs=tuple(entries))

    def write(self) -> None:
        """Writes the file."""
        store.write_json(self.file, self.record().plain())

    def _entry(self, job: Job) -> LedgerEntry:
        status = self.states[job.id]
        error = status.error
        if status.state == WAITING and not error and (need := self.waits_for(job)):
            error = f"waiting: needs {need}"
        return LedgerEntry(
            id=job.id,
            stage=job.stage,
            model=job.model,
            kind=job.cell.kind,
            frac=job.cell.frac,
            select=job.cell.select,
            variant=job.variant,
            precision=job.precision,
            task=job.task,
            state=status.state,
            error=f"shared with {job.shared}" if job.shared else error,
            seconds=status.seconds,
            command=job.command,
            outputs=tuple(str(path) for path in job.outputs),
        )


def _pending_entry(pending: PendingCell) -> LedgerEntry:
    """The entry of a cell whose variant is not known yet: a gap that a report can name."""
    return LedgerEntry(
        id=pending.id,
        stage="select",
        model=pending.model,
        kind=pending.cell.kind,
        frac=pending.cell.frac,
        select=pending.cell.select,
        state=WAITING,
        error=f"waiting: needs {pending.needs}",
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One sweep of a recipe at a time; what a killed one left half-written goes.

    Raises:
        UserError: another one runs.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock(folder, wait=False))
        except BlockingIOError:
            raise UserError(
                f"a sweep of this recipe runs already ({folder}); wait for it or stop it"
            ) from None
        store.sweep_temporaries(folder)
        yield


class Rates:
    """How long jobs took: the mean over all ledgers of the project, of the same stage, model and task."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, str | None], list[float]] = {}
        for file in store.Project().report_inputs()["ledgers"]:
            for entry in _entries(file):
                if entry.state == DONE and entry.seconds and entry.stage != "select":
                    self.add(entry.stage, entry.model, entry.task, entry.seconds)

    def add(self, stage: str, model: str, task: str | None, seconds: float) -> None:
        """One more measurement."""
        self.seconds.setdefault((stage, model, task), []).append(seconds)

    def of(self, job: Job) -> float | None:
        """Seconds that the job will take, estimated; None where nothing like it has been measured."""
        measured = self.seconds.get((job.stage, job.model, job.task))
        return fmean(measured) if measured else None


def _entries(file: Path) -> tuple[LedgerEntry, ...]:
    """The entries of a ledger; none where it cannot be read, for it decides nothing."""
    try:
        return records.read(LedgerRecord, file).jobs
    except UserError:
        return ()
