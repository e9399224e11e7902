"""Processes of the operating system: how one is stopped with its children, and where it may run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType


class _Stop:
    """What the process does when it is told to stop.

    Attributes:
        number: of the first signal; None before it.
        since: when it came, by the monotonic clock.
    """

    number: int | None = None
    since = 0.0

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt for Ctrl-C, SystemExit(128 + number) for other signals.

        A later signal is ignored, so that it does not disturb the cleaning up; after a while it is taken
        again, for a library may have swallowed what the first one raised.
        """
        if self.number is not None and time.monotonic() - self.since < _CLEANING:
            return
        self.number, self.since = self.number or number, time.monotonic()
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)

    def unraisable(self, report: sys.UnraisableHookArgs) -> None:
        """What it raised in a destructor or a callback, where Python drops it, is raised again."""
        if self.number is None or not isinstance(report.exc_value, KeyboardInterrupt | SystemExit):
            sys.__unraisablehook__(report)
            return
        self.since -= _CLEANING
        again = threading.Timer(0.05, os.kill, (os.getpid(), self.number))
        again.daemon = True
        again.start()


_stop: _Stop | None = None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it Ctrl-C, SIGTERM and SIGHUP raise what unwinds the command, and only the first of them.

    It is KeyboardInterrupt for Ctrl-C, SystemExit(143) for SIGTERM, SystemExit(129) for SIGHUP. A signal that
    this process was started to ignore stays ignored. One that is within another changes nothing; nor does one
    outside the main thread, because Python takes signals there only.
    """
    global _stop
    if _stop is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop = _Stop()
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, _stop.take) for number in numbers}
    hook, sys.unraisablehook = sys.unraisablehook, _stop.unraisable
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook, _stop = hook, None


def stopped_by() -> int | None:
    """The signal that this process is stopping for, within `stoppable`; None where it is not."""
    return None if _stop is None else _stop.number


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that this thread starts within it never see Ctrl-C: it is for this one, which ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(number: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Asks the kernel to send this process a signal when its parent dies; the request is kept over exec.

    Args:
        number: the signal.
        parent: process id of the parent; where that one has died before this call, the process exits here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def usable_processors() -> set[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def kill_group(leader: int) -> None:
    """Kills what is left of a process group.

    Args:
        leader: process id of its leader, which may have ended.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(leader, signal.SIGKILL)


def end_groups(leaders: Sequence[subprocess.Popen[bytes]], grace: float = 5.0) -> None:
    """SIGTERM to process groups, time for their leaders to clean up, then SIGKILL to what is left.

    Args:
        leaders: processes that lead a group each.
        grace: seconds that they have together.
    """
    for leader in leaders:
        if leader.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(leader.pid, signal.SIGTERM)
    until = time.monotonic() + grace
    for leader in leaders:
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(max(0.0, until - time.monotonic()))
        kill_group(leader.pid)
        leader.wait()


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANING = 10.0
"""Seconds in which a further signal is ignored."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
