"""HTTP connections that a silent, slow or deaf client cannot keep open, and only so many of them.

uvicorn limits none of these: its keep-alive limit ends with the first byte of a request.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.ship.web.guard import Refused, triton_form

CRUMB = re.compile(rb"\r\n0*[0-9a-fA-F]{1,2}[ \t]*[;\r]")
"""The size of a chunk below 256 bytes."""
CRUMBS = 2000
"""Of one request, at most: each costs the parser as much time as a large one, and all clients share it."""
FILES = 4096
"""Open files that are asked of the system: a connection through the gate takes two."""
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: application/json\r\n"
    b'Content-Length: 33\r\nConnection: close\r\n\r\n{"error": "too many connections"}'
)


class BoundedConnection(H11Protocol):
    """uvicorn's connection, with limits on the client's time.

    A request's header must be whole `silence` seconds after the connection or the answer before it, its body
    `silence` seconds later, and one more for each `rate` bytes that came (as Apache's mod_reqtimeout counts).
    An answer of which nothing is taken for `silence` seconds is cut.
    """

    silence: ClassVar[float] = 30.0
    rate: ClassVar[float] = 64 * 1024
    most: ClassVar[int] = 1000
    """Connections of one port; one more gets 503 and is closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.since, self.received, self.unread, self.crumbs = 0.0, 0, 0, 0
        self.deaf_since: float | None = None
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection, and starts its clock."""
        if len(self.connections) >= self.most:
            self.transport = transport
            transport.write(BUSY)
            transport.close()
            return
        super().connection_made(transport)
        self._begin()
        self._tick()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts; with the end of a request's header the time of its body begins."""
        before = self.cycle
        self.received += len(data)
        self.crumbs += len(CRUMB.findall(data))
        if self.crumbs > CRUMBS:
            self.transport.abort()
            return
        super().data_received(data)
        if self.cycle is not before:
            self._begin()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the application's own form, and the connection closed."""
        form = getattr(self.app, "form", triton_form)
        body = json.dumps(form(Refused(400, msg, "bad_http"))).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        headers.append(("Connection", "close"))
        head = h11.Response(status_code=400, reason=b"Bad Request", headers=headers)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def on_response_complete(self) -> None:
        """The time of the next request begins."""
        self._begin()
        super().on_response_complete()

    def _begin(self) -> None:
        self.since, self.received, self.crumbs = self.loop.time(), 0, 0

    def _tick(self) -> None:
        now = self.loop.time()
        if self._is_late(now) or self._is_deaf(now):
            if self.transport.is_closing() or self.transport.get_write_buffer_size():
                self.transport.abort()
                return
            self.transport.close()
        self.timer = self.loop.call_later(self.silence / 5, self._tick)

    def _is_late(self, now: float) -> bool:
        """Whether the client should have sent more by now."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and (not self.cycle.more_body or self.flow.read_paused):
            self.since = now
        return now > self.since + self.silence + self.received / self.rate

    def _is_deaf(self, now: float) -> bool:
        """Whether the client takes nothing of what waits for it."""
        unread = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        if not unread or self.deaf_since is None or unread < self.unread:
            self.deaf_since = now if unread else None
        self.unread = unread
        return self.deaf_since is not None and now > self.deaf_since + self.silence


def room_for_files() -> None:
    """Raises this process's own limit of open files, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
