"""An HTTP application in a thread of this process, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from pipeline.ship.web.connections import BoundedConnection, room_for_files
from pipeline.ship.web.model_states import ModelStates
from pipeline.types import Failed, UserError

HEADER = 16 * 1024
"""Bytes of a request's header, at most."""
BACKLOG = 1024
"""Connections that wait to be taken."""
GRACE = 1.0
"""Seconds that clients have to take the end of their answers when the server stops."""


class _Server(uvicorn.Server):
    """uvicorn's server. When it stops, requests in work are told first, and deaf clients are cut off last."""

    def __init__(self, config: uvicorn.Config, states: ModelStates) -> None:
        super().__init__(config)
        self.states = states

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.states.stop()
        asyncio.get_running_loop().call_later(GRACE, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


@contextmanager
def listening(app: Any, listener: socket.socket, states: ModelStates) -> Iterator[str]:
    """The application, in a thread; gives its URL on this machine.

    At the end the requests in work end as Outage, their answers are sent, what is still open after
    GRACE seconds is cut, and the thread is joined.

    Args:
        app: an ASGI application, whose requests go through `states.attending`.
        listener: a bound socket, which is closed at the end.
        states: which models answer.

    Raises:
        UserError: the port is taken by now.
        Failed: the application did not start.
    """
    try:
        listener.listen(BACKLOG)
    except OSError:  # another process was faster with it
        raise UserError(f"{address(listener)} is taken; choose another port") from None
    room_for_files()
    server = _Server(_settings(app), states)
    url = address(listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name=f"serves {url}")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        if not server.started:
            raise Failed(f"what should answer at {url} did not start")
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _settings(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        log_level="error",  # a client's nonsense is no line of the log
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADER,
        timeout_keep_alive=BoundedConnection.silence,  # type: ignore[arg-type]
        timeout_graceful_shutdown=int(GRACE) + 1,
    )


def address(listener: socket.socket) -> str:
    """The URL by which this machine reaches a bound socket."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
