"""The commands. Each parses its options, calls its stage and prints; its stage is imported inside it.

This file imports nothing heavy: a signal ends the process quietly from its first line on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

__all__ = ["main"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPED = {128 + number for number in _SIGNALS}


def main() -> None:
    """The entry point of `pipeline`.

    Until the command begins, and once it has ended, nothing is half-written: a signal ends the process where
    it stands, with 128 + its number. In between `processes.stoppable` takes it.
    """
    _end_at_once()
    from pipeline.cli.commands import main as command

    try:
        command()
    except SystemExit as end:
        if end.code in _STOPPED:  # threads and libraries have nothing to say to that
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(end.code)
        raise
    finally:
        _end_at_once()


def _end_at_once() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's &
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
