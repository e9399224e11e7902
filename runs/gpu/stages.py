"""Stages of a proof: commands that are run one after the other, each within its time.

A stage that fails, or takes too long, is said to have failed, and the others go on. One that lacks something
is skipped, with the reason.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.store import processes

ROOT = Path(__file__).parents[2]
"""Of the checkout, which the commands are run from, whatever else is installed."""
Status = Literal["done", "failed", "skipped"]
MINIMUM = 5.0
"""Seconds of the whole time that must be left for a stage to begin."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A command.

    Attributes:
        name: unique in the proof.
        command: what follows `pipeline`; or, with `module`, a Python module.
        needs: stages that it builds upon.
        skip: why it cannot be run here; None where it can.
        module: that Python runs.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    skip: str | None = None
    module: str = "pipeline.cli"

    @property
    def words(self) -> str:
        """The command as a person types it."""
        first = "pipeline" if self.module == "pipeline.cli" else f"python -m {self.module}"
        return f"{first} {shlex.join(self.command)}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a stage.

    Attributes:
        reason: why it failed or was skipped, in a line.
        seconds: that it took; limit: that it had.
        output: what it printed, if that is JSON.
    """

    name: str
    command: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    output: Any = None

    def plain(self) -> dict[str, Any]:
        """For JSON, without the output, which lies among the logs."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self.seconds, 1),
            "limit": round(self.limit, 1),
            "command": self.command,
        }


@dataclass(slots=True)
class Conductor:
    """Runs stages.

    Attributes:
        folder: that commands run in: the project.
        logs: folder of what they print.
        seconds: limit of a stage.
        total: limit of them all, seconds.
        after: is called after each stage, so that a run that is ended leaves what it found.
        outcomes: of the stages so far.
    """

    folder: Path
    logs: Path
    seconds: float
    total: float
    after: Callable[[], None] = lambda: None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _start: float = field(default_factory=time.monotonic)

    def run(self, stage: Stage) -> Outcome:
        """Runs a stage, unless something is missing."""
        reason = stage.skip or self._missing(stage.needs)
        limit = min(self.seconds, self.total - self.spent)
        if reason is None and limit < MINIMUM:
            reason = f"the {self.total / 60:.0f} minutes for everything are over"
        if reason is None:
            outcome = self._outcome(stage, limit)
        else:
            outcome = Outcome(stage.name, stage.words, "skipped", reason)
        self.outcomes[stage.name] = outcome
        words = f" ({outcome.reason})" if outcome.reason else f" in {outcome.seconds:.0f} s"
        print(f"[{self.spent:6.0f} s] {stage.name}: {outcome.status}{words}", flush=True)
        self.after()
        return outcome

    def done(self, names: Iterable[str]) -> bool:
        """Whether stages have been done."""
        return self._missing(tuple(names)) is None

    def output(self, name: str) -> Any:
        """The JSON that a stage printed; None where it did not run, or not to its end."""
        return self.outcomes[name].output if name in self.outcomes else None

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    def _missing(self, needs: tuple[str, ...]) -> str | None:
        for name in needs:
            if self.outcomes[name].status != "done":
                return f"needs `{name}`, which was {self.outcomes[name].status}"
        return None

    def _outcome(self, stage: Stage, limit: float) -> Outcome:
        stem = f"{len(self.outcomes) + 1:02d}-{stage.name.replace(' ', '-')}"
        (self.logs / f"{stem}.command").write_text(stage.words + "\n", encoding="utf-8")
        answer, log = self.logs / f"{stem}.json", self.logs / f"{stem}.log"
        start = time.monotonic()
        with answer.open("w", encoding="utf-8") as out, log.open("w", encoding="utf-8") as err:
            code = self._code([sys.executable, "-m", stage.module, *stage.command], limit, out, err)
        seconds, output = time.monotonic() - start, _parsed(answer)
        if code is None:
            reason = f"stopped after {limit:.0f} s, its limit"
        else:
            reason = _reason(code, output, log)
        status: Status = "done" if code == 0 else "failed"
        return Outcome(stage.name, stage.words, status, reason, seconds, limit, output)

    def _code(self, command: list[str], limit: float, out: Any, err: Any) -> int | None:
        """The exit code; None after the time, when nothing of the command is left running."""
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        environment.pop("PIPELINE_PROVIDER", None)  # each command names its own
        child = subprocess.Popen(
            command, cwd=self.folder, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        try:
            return child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.returncode is None:  # too long, or Ctrl-C
                processes.kill_group(child.pid)
                child.wait()


def _parsed(file: Path) -> Any:
    """The JSON in a file; None where there is none, or half of it."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _reason(code: int, output: Any, log: Path) -> str:
    """Why a command failed, in a line: what it said last; '' where it did not."""
    if code == 0:
        return ""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + _OFTEN.get(-code, "")
    failures = [one for record in output or () if isinstance(record, dict) for one in _failures(record)]
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = [*lines[-1:], *failures[:1]]
    words = last[-1] if last else "without a word"
    return f"exit {code}: {' '.join(words.removeprefix('error: ').split())[:300]}"


_OFTEN = {signal.SIGKILL: ", often the system's answer where memory is short"}


def _failures(record: dict[str, Any]) -> list[str]:
    return [str(one) for one in record.get("failures", ())]
