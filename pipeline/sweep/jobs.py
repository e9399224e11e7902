"""What a plan consists of: jobs in an order in which they can run, and cells that are not known yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GridCell:
    """A point of the grid: a rule, and the fraction of a kind that it is to choose. All None: the base."""

    kind: str | None = None
    frac: float | None = None
    select: str | None = None

    @property
    def words(self) -> str:
        """'attn 25% last', or 'base'."""
        return "base" if self.kind is None else f"{self.kind} {self.frac:.0%} {self.select}"


@dataclass(frozen=True, slots=True)
class Job:
    """One stage on one variant: a command, with files in and files out.

    Attributes:
        id: unique in the sweep, and a file name.
        cell: the first cell of the grid that wants it.
        command: as a person types it, `pipeline …`.
        variant: name of the variant; None where the stage is of the whole model.
        inputs, outputs: files; a job is done when its outputs match its inputs (`done`).
        needs: ids of the jobs that come before.
        exclusive: measures time: nothing else may run on the device.
        gpu: needs an NVIDIA GPU.
        memory: bytes that it needs, estimated, where the model's size is known.
        inline: decided while planning; there is nothing to run.
        shared: id of the job that does the same for an earlier cell.
        stdout: file that keeps what the command prints, where that is its result.
    """

    id: str
    stage: str
    model: str
    cell: GridCell
    command: Command
    variant: str | None = None
    precision: str | None = None
    task: str | None = None
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()
    exclusive: bool = False
    gpu: bool = False
    memory: int | None = None
    inline: bool = False
    shared: str | None = None
    stdout: Path | None = None


@dataclass(frozen=True, slots=True)
class PendingCell:
    """A cell whose variant is not known before a job is done.

    Attributes:
        id: that of its `select` job.
        needs: id of the job that it waits for.
        reason: what it waits for, in words.
    """

    id: str
    model: str
    cell: GridCell
    needs: str
    reason: str


@dataclass(slots=True)
class SweepPlan:
    """Jobs in an order in which they can run.

    Attributes:
        pending: cells whose variant is not known yet.
        notes: cells that no rule can fill, in words.
    """

    jobs: list[Job] = field(default_factory=list)
    pending: list[PendingCell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, job: Job) -> Job:
        """Appends the job, and returns it."""
        self.jobs.append(job)
        return job

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def processes(self) -> list[Job]:
        """The jobs that are run as processes; the others were decided while planning."""
        return [job for job in self.jobs if not job.inline]
