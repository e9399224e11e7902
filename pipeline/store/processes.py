"""Processes of the operating system: how a command is stopped."""

from __future__ import annotations

import contextlib
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
