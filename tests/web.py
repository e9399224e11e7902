"""What the tests of `serve`'s HTTP ports share: an application that listens, and clients that misbehave."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from pipeline.ship.ports import bound
from pipeline.ship.web.listening import listening
from pipeline.ship.web.model_states import ModelStates


@contextmanager
def served(app, states: ModelStates | None = None) -> Iterator[str]:
    """The application on a free port; gives its URL."""
    with listening(app, bound(0, "--http-port"), states or ModelStates()) as url:
        yield url


@contextmanager
def raw(url: str, *parts: bytes) -> Iterator[socket.socket]:
    """A connection over which the parts were sent."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes; a reset ends it too."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pieces.append(b"<reset>")
    return b"".join(pieces)


async def echo(scope, receive, send) -> None:
    """Answers with the body that it got; /big with 64 MB, /endless with a stream that never ends."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/big":
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
    await send({"type": "http.response.body", "body": body})
