"""Jobs as processes of this machine: a fixed number side by side, a measurement of time alone.

Every process leads a group of its own, which is killed with the sweep; the kernel kills it where the sweep itself is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline import store
from pipeline.sweep.jobs import Command, Job

_LAUNCH = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"  # PR_SET_PDEATHSIG, kept over exec: the job dies with who started it
    "os.getppid() == int(sys.argv[1]) or os._exit(1)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'pipeline.cli', *sys.argv[2:]])\n"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        error: one line; None where it exited with 0.
        seconds: that it took.
        began: when, in seconds since 1970.
    """

    id: str
    error: str | None
    seconds: float
    began: float = 0.0


class Pool(Protocol):
    """Where jobs run."""

    def takes(self, job: Job) -> bool:
        """Whether the job may start now."""

    def start(self, job: Job) -> None: ...

    def ended(self, wait: float) -> list[Outcome]:
        """Jobs that have ended; waits so many seconds for one."""

    def close(self) -> None:
        """Kills what runs."""


class Process:
    """One job's process, from the project's root.

    Args:
        logs: folder of its stderr, `<id>.log`, and of its stdout, `<id>.out`.
    """

    def __init__(
        self, id: str, command: Command, logs: Path, stdout: Path | None, root: Path | None = None
    ) -> None:
        self.id, self.stdout, self.started = id, stdout, time.monotonic()
        self.log, self.out = logs / f"{id}.log", logs / f"{id}.out"
        logs.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-c", _LAUNCH, str(os.getpid()), *command[1:]]
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                cwd=root,
                process_group=0,
                env=environment(),
            )

    def ended(self) -> Outcome | None:
        """How it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        self.kill()  # what it may have left behind in its group
        seconds = time.monotonic() - self.started
        if code == 0 and self.stdout is not None:
            with store.atomic(self.stdout) as temporary:
                temporary.write_bytes(self.out.read_bytes())
        return Outcome(self.id, None if code == 0 else self._error(code), seconds, time.time() - seconds)

    def _error(self, code: int) -> str:
        """The line that says why: the command's `error:`, else what a check says on stdout, else the last of stderr."""
        if code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        words, said = (file.read_text(errors="replace").strip().splitlines() for file in (self.log, self.out))
        errors = [line for line in words if line.startswith("error:")]
        verdicts = [line for line in said if line.startswith("FAILED")]
        return (errors or verdicts or words or [f"exit code {code}"])[-1].removeprefix("error:").strip()[:500]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """The environment of a job: this very package, and one set of words on stderr."""
    package = str(Path(__file__).parent.parent.parent)
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "TQDM_DISABLE": "1"}


class LocalPool:
    """Processes of this machine.

    Args:
        slots: jobs side by side; a job that measures time runs alone.
    """

    def __init__(self, slots: int, logs: Path) -> None:
        self.slots, self.logs = slots, logs
        self.held: dict[str, tuple[Job, Process]] = {}

    def takes(self, job: Job) -> bool:
        if job.exclusive:
            return not self.held
        return len(self.held) < self.slots and not any(other.exclusive for other, _ in self.held.values())

    def start(self, job: Job) -> None:
        self.held[job.id] = (job, Process(job.id, job.command, self.logs, job.stdout))

    def ended(self, wait: float) -> list[Outcome]:
        until = time.monotonic() + wait
        while True:
            found = [outcome for _, process in self.held.values() if (outcome := process.ended())]
            if found or time.monotonic() > until:
                for outcome in found:
                    del self.held[outcome.id]
                return found
            time.sleep(0.02)

    def close(self) -> None:
        for _, process in self.held.values():
            process.kill()
            process.process.wait()
        self.held.clear()
