"""Which models answer just now: the watch says it, and the requests in work end at once when one does not.

The watch runs in the main thread; each HTTP application has an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

RETRY_AFTER = 5
"""Seconds after which a client may ask again (the header Retry-After)."""
DOWN_WORDS = ("unhealthy", "not healthy", "Stub process", "unloaded", "unavailable", "is being")
"""Words of Triton's errors for a model that is down or being loaded."""
STOPPING = "the server is being stopped"


class Outage(Exception):
    """A request that ends here: the model is down, the server stops, or its time is over. Clients get 503."""


class Attendance:
    """One request in work, which any thread may end.

    Args:
        seconds: from now to its end; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.limit = asyncio.timeout(seconds)
        self.reason = f"the request was not done after {seconds:g} s" if seconds else ""
        self.is_over = False

    def end(self, reason: str) -> None:
        """Ends the request with Outage, for this reason."""
        with contextlib.suppress(RuntimeError):  # its loop has just ended, and it with the loop
            self.loop.call_soon_threadsafe(self._end, reason)

    def _end(self, reason: str) -> None:
        if not self.is_over and not self.limit.expired():
            self.is_over, self.reason = True, reason
            self.limit.reschedule(self.loop.time())


Observer = Callable[[str, str | None], None]
"""Called with the reason and the name of a model that is down; None where the server stops. In any thread."""


class ModelStates:
    """Which models are down, and which requests are in work. Safe to use from any thread.

    Attributes:
        observers: told of each outage; for those that attend to their requests themselves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._down: dict[str, str] = {}
        self._stopping: str | None = None
        self._in_work: dict[Attendance, str | None] = {}
        self.observers: list[Observer] = []

    def down(self, name: str, reason: str = "its process ended") -> None:
        """A model does not answer: its requests in work end at once, and new ones are refused.

        Args:
            name: of the model, as Triton has it.
            reason: why, for the clients.
        """
        words = f"{name} is being loaded again: {reason}"
        with self._lock:
            self._down[name] = words
            ended = [request for request, model in self._in_work.items() if model == name]
        for request in ended:
            request.end(words)
        for observer in self.observers:
            observer(words, name)

    def up(self, name: str) -> None:
        """A model answers (again)."""
        with self._lock:
            self._down.pop(name, None)

    def stop(self) -> None:
        """The server stops: every request ends at once."""
        with self._lock:
            self._stopping = STOPPING
            ended = list(self._in_work)
        for request in ended:
            request.end(STOPPING)
        for observer in self.observers:
            observer(STOPPING, None)

    def reason(self, name: str | None) -> str | None:
        """Why a request is refused now; None where it is not.

        Args:
            name: of its model; None for a request of no model.
        """
        return self._stopping or (self._down.get(name) if name else None)

    @contextlib.asynccontextmanager
    async def attending(self, name: str | None, seconds: float | None = None) -> AsyncIterator[Attendance]:
        """Around the work for one request, in one task.

        Args:
            name: of its model; None for a request of no model.
            seconds: that it may take; None for no limit.

        Raises:
            Outage: the model is down or goes down, the server stops, the time is over.
        """
        request = Attendance(seconds)
        with self._lock:
            if (reason := self.reason(name)) is not None:
                raise Outage(reason)
            self._in_work[request] = name
        try:
            async with request.limit:
                yield request
        except TimeoutError:
            if not request.limit.expired():
                raise
            raise Outage(request.reason) from None
        finally:
            request.is_over = True
            with self._lock:
                del self._in_work[request]
