"""Jobs as processes of this machine: a fixed number side by side, a measurement of time alone.

Every process leads a group of its own, which is killed when the sweep stops. Where the sweep itself is
killed, the kernel kills them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline import store
from pipeline.store.processes import end_groups, kill_group
from pipeline.sweep.jobs import Command, Job
from pipeline.types import file_name, first_line

_LAUNCH = (
    "import os, sys\n"
    "from pipeline.store.processes import end_with_parent\n"
    "end_with_parent(parent=int(sys.argv[1]))\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'pipeline.cli', *sys.argv[2:]])\n"
)
"""What starts a job. The request to end with the sweep is kept over exec."""


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


class JobPool(Protocol):
    """Where jobs run."""

    def takes(self, job: Job) -> bool:
        """Whether the job may start now."""

    def start(self, job: Job) -> None:
        """Starts it."""

    def ended(self, wait: float) -> list[Outcome]:
        """The jobs that have ended; waits at most `wait` seconds for one."""

    def close(self) -> None:
        """Kills what runs."""


class JobProcess:
    """One job's process.

    Args:
        logs: folder of its stderr, `<id>.log`, and of its stdout, `<id>.out`.
        stdout: file that gets its stdout when it has succeeded.
        root: the project's folder; by default the current directory.
    """

    def __init__(
        self, id: str, command: Command, logs: Path, stdout: Path | None, root: Path | None = None
    ) -> None:
        self.id, self.stdout, self.started = id, stdout, time.monotonic()
        name = file_name(id, 200)
        self.log, self.out = logs / f"{name}.log", logs / f"{name}.out"
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
        """Why it failed: the command's `error:`, else a check's verdict, else the last line of stderr."""
        if code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        stderr, stdout = (
            file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            for file in (self.log, self.out)
        )
        errors = [line for line in stderr if line.startswith("error:")]
        verdicts = [line for line in stdout if line.startswith("FAILED")]
        lines = errors or verdicts or stderr or [f"exit code {code}"]
        return first_line(lines[-1].removeprefix("error:"), 500)

    def kill(self) -> None:
        """Kills it and what it has started."""
        kill_group(self.process.pid)


def environment() -> dict[str, str]:
    """The environment of a job: it imports this package, draws no progress bars, and computes on the CPU.

    A job on CUDA would write its results under other names than those that a sweep waits for.
    """
    package = str(Path(__file__).parent.parent.parent)
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    fixed = {"TQDM_DISABLE": "1", "PIPELINE_PROVIDER": "cpu"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **fixed}


class LocalPool:
    """Processes of this machine.

    Args:
        slots: jobs side by side; a job that measures time runs alone.
        logs: folder of what they print.
    """

    def __init__(self, slots: int, logs: Path) -> None:
        self.slots, self.logs = slots, logs
        self.running: dict[str, tuple[Job, JobProcess]] = {}

    def takes(self, job: Job) -> bool:
        """Whether a slot is free, and nothing measures time."""
        if job.exclusive:
            return not self.running
        is_measuring = any(other.exclusive for other, _ in self.running.values())
        return len(self.running) < self.slots and not is_measuring

    def start(self, job: Job) -> None:
        """Starts its process."""
        self.running[job.id] = (job, JobProcess(job.id, job.command, self.logs, job.stdout))

    def ended(self, wait: float) -> list[Outcome]:
        """The jobs that have ended; waits at most `wait` seconds for one."""
        until = time.monotonic() + wait
        while True:
            outcomes = [outcome for _, process in self.running.values() if (outcome := process.ended())]
            if outcomes or time.monotonic() > until:
                for outcome in outcomes:
                    del self.running[outcome.id]
                return outcomes
            time.sleep(0.02)

    def close(self) -> None:
        """Ends what runs: SIGTERM, so that a job removes what it has half written, then SIGKILL."""
        end_groups([process.process for _, process in self.running.values()])
        self.running.clear()
