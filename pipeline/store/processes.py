"""Processes of the operating system: how a command is stopped, and its children with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM does what Ctrl-C does: it raises KeyboardInterrupt. Only the first signal does so.

    Later ones are ignored, so that they do not disturb the cleaning up. Outside the main thread nothing
    changes, because Python takes signals there only.
    """
    is_stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            raise KeyboardInterrupt

    handlers = {}
    with contextlib.suppress(ValueError):  # not the main thread
        handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_with_parent(number: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Asks the kernel to send this process a signal when its parent dies; the request is kept over exec.

    Args:
        number: the signal.
        parent: process id of the parent; where that one has died before this call, the process exits here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def kill_group(leader: int) -> None:
    """Kills what is left of a process group.

    Args:
        leader: process id of its leader, which may have ended.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(leader, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
