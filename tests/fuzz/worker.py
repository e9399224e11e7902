"""A process that reads hostile files: with a bound on its memory, and killed when one takes too long."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import resource
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.kinds import Kind

SECONDS = 20.0
"""That reading one file may take."""
SPACE = 6 * 2**30
"""Bytes of address space beyond what the libraries have."""
GROWTH = 1_500_000
"""KiB that the process may grow by one file, of which 64 MiB are read at most."""
REFUSED, ACCEPTED, FAULT, HANG, MEMORY = (
    "refused in one line",
    "accepted",
    "tracebacks",
    "hangs",
    "over memory",
)


@dataclass(frozen=True)
class Outcome:
    """How reading one file ended.

    Attributes:
        end: one of the columns of the table.
        words: the refusal, or the last lines of the traceback.
    """

    end: str
    words: str = ""


class Worker:
    """Reads files of some kinds in a child, which is forked again after each that it did not survive.

    Args:
        kinds: that it may be asked for, by their place.
    """

    def __init__(self, kinds: list[Kind]) -> None:
        self.kinds = kinds
        self.context = multiprocessing.get_context("fork")
        self.child: Any = None
        self.pipe: Connection | None = None
        self.stacks = tempfile.NamedTemporaryFile(prefix="fuzz-stack-")  # noqa: SIM115 - open as long as this

    def read(self, kind: int, folder: Path, free: Path) -> Outcome:
        """Reads a folder as its kind; `free` may be written."""
        if self.child is None:
            ours, theirs = self.context.Pipe()
            self.child = self.context.Process(
                target=_serve, args=(theirs, self.kinds, self.stacks.name), daemon=True
            )
            self.child.start()
            theirs.close()
            self.pipe = ours
        assert self.pipe is not None
        self.pipe.send((kind, str(folder), str(free)))
        try:
            if self.pipe.poll(SECONDS + 2):
                outcome: Outcome = self.pipe.recv()
                if outcome.end in (MEMORY, HANG):
                    self.close()
                return outcome
            end = Outcome(HANG, Path(self.stacks.name).read_text(encoding="utf-8", errors="replace")[-3000:])
        except EOFError:
            self.child.join()
            code = self.child.exitcode
            end = Outcome(MEMORY if code == -6 else FAULT, f"the process ended with {code}")
        self.close()
        return end

    def close(self) -> None:
        """Ends the child."""
        if self.child is not None:
            self.child.kill()
            self.child.join()
            self.child = None


def _serve(pipe: Connection, kinds: list[Kind], stacks: str) -> None:
    """Reads what it is asked to until nobody asks."""
    logging.disable(logging.CRITICAL)
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
    out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    with Path(stacks).open("w", encoding="utf-8") as stack, contextlib.suppress(EOFError, OSError):
        while True:
            kind, folder, free = pipe.recv()
            stack.seek(0)
            stack.truncate()
            faulthandler.dump_traceback_later(SECONDS, file=stack)
            try:
                pipe.send(outcome_of(kinds[kind], Path(folder), Path(free)))
            finally:
                faulthandler.cancel_dump_traceback_later()


def outcome_of(kind: Kind, folder: Path, free: Path) -> Outcome:
    """Reads a folder as its kind, in this process; `free` may be written."""
    from pipeline.cli import disk_errors
    from pipeline.types import UserError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    here = Path.cwd()
    end = Outcome(ACCEPTED)
    try:
        os.chdir(free)
        kind.use(folder, free)
    except UserError as error:
        end = Outcome(REFUSED if _is_one_line(str(error)) else FAULT, str(error)[:3000])
    except MemoryError:
        end = Outcome(MEMORY, traceback.format_exc()[-3000:])
    except OSError as error:
        told = disk_errors.line(error)
        end = Outcome(REFUSED if told else FAULT, told or traceback.format_exc()[-3000:])
    except BaseException:  # noqa: BLE001 - what is counted
        end = Outcome(FAULT, traceback.format_exc()[-3000:])
    finally:
        os.chdir(here)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Outcome(MEMORY, f"{grown:,} KiB more; {end.words}") if grown > GROWTH else end


def _is_one_line(message: str) -> bool:
    """Whether what `fail` prints of it is a line that a terminal shows."""
    from pipeline.cli.app import one_line

    line = one_line(message)
    return 0 < len(line) < 3000 and line.isprintable()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder that goes, whatever lies in it."""
    folder = Path(tempfile.mkdtemp(prefix="pipeline-fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
