"""What a plan consists of: jobs, the cells of the grid that are not known yet, and the order that files impose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A point of the grid: a rule asked for a fraction of a kind. All None: the base."""

    kind: str | None = None
    frac: float | None = None
    select: str | None = None

    @property
    def words(self) -> str:
        return "base" if self.kind is None else f"{self.kind} {self.frac:.0%} {self.select}"


@dataclass(frozen=True, slots=True)
class Job:
    """One stage on one variant: a command, with files in and files out.

    Attributes:
        id: unique in the sweep, and a file name.
        cell: the first cell of the grid that wants it.
        variant: name of the variant; None where the stage is of the whole model.
        command: as a person types it, `pipeline …`.
        inputs, outputs: files; a job is done when its outputs match its inputs (`done`).
        needs: ids of jobs that come before.
        exclusive: measures time: nothing else may run on the device.
        gpu: needs an NVIDIA GPU.
        memory: bytes that it holds about, where the model's size is known.
        inline: decided while planning; there is nothing to run.
        shared: id of the job that does the same for an earlier cell.
        stdout: file that keeps what the command prints, where that is its result.
    """

    id: str
    stage: str
    model: str
    cell: Cell
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
class Pending:
    """A cell whose variant is not known before a job is done; id: that of its `select`."""

    id: str
    model: str
    cell: Cell
    needs: str
    words: str


@dataclass(slots=True)
class Plan:
    """Jobs in an order in which they can run; what is not known yet; what the grid has and no rule can give."""

    jobs: list[Job] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, job: Job) -> Job:
        self.jobs.append(job)
        return job

    @property
    def running(self) -> list[Job]:
        """Those that are processes."""
        return [job for job in self.jobs if not job.inline]
