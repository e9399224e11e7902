"""An application in a thread: it stops soon whatever its clients do, and every answer has an end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from pipeline.ship.ports import bound
from pipeline.ship.web.listening import address, listening
from pipeline.ship.web.model_states import RETRY_AFTER, ModelStates, Outage
from pipeline.types import Failed, UserError
from tests.web import raw, received, served

GET = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"


def streaming(states: ModelStates):
    """/stream sends an event now and then, /whole waits, /deaf sends all that it can."""

    async def app(scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        is_started = False
        try:
            async with states.attending("m"):
                if scope["path"] == "/whole":
                    await asyncio.sleep(60)
                await send({"type": "http.response.start", "status": 200, "headers": []})
                is_started = True
                while True:
                    body = b"event " if scope["path"] == "/stream" else bytes(2**20)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    await asyncio.sleep(0.01)
        except Outage as error:
            if not is_started:
                headers = [(b"retry-after", b"%d" % RETRY_AFTER)]
                await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": str(error).encode()})

    return app


def test_every_answer_has_an_end_when_it_stops() -> None:
    states = ModelStates()
    with ExitStack() as stack:
        with served(streaming(states), states) as url:
            kinds = [b"stream"] * 30 + [b"whole"] * 10 + [b"deaf"] * 3
            clients = [stack.enter_context(raw(url, GET % kind)) for kind in kinds]
            idle = [stack.enter_context(raw(url, part)) for part in (b"", b"GET / HT")]
            for client in clients[:30]:
                assert client.recv(10).startswith(b"HTTP/1.1 2")
            before = time.monotonic()
        assert time.monotonic() - before < 10  # what `serve` promises, not a measurement
        end = b"the server is being stopped\r\n0\r\n\r\n"
        for client in clients[:30]:
            assert received(client).endswith(end)
        for client in clients[30:40]:
            answer = received(client)
            assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in answer and answer.endswith(end)
        assert all(received(client) == b"" for client in idle)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("serves ")]
    with pytest.raises(OSError, match="refused"), raw(url):
        pass


def test_a_model_that_goes_down_ends_its_own_requests_alone() -> None:
    states = ModelStates()
    with served(streaming(states), states) as url, raw(url, GET % b"stream") as client:
        assert client.recv(10)
        states.down("other")
        time.sleep(0.1)
        assert client.recv(10)
        states.down("m", "it was killed")
        end = b"m is being loaded again: it was killed\r\n0\r\n\r\n"
        answer = b""
        while not answer.endswith(end):
            answer += client.recv(999)
        client.sendall(GET % b"stream")  # on the same connection, refused at once
        assert client.recv(999).startswith(b"HTTP/1.1 503")
        states.up("m")
        with raw(url, GET % b"stream") as again:
            assert again.recv(999).startswith(b"HTTP/1.1 200")


def test_an_application_that_does_not_start_is_an_error() -> None:
    async def app(scope, receive, send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(Failed, match="did not start"), served(app):
        pass


def test_the_address_is_one_that_this_machine_reaches() -> None:
    with bound(0, "--x", "0.0.0.0") as listener:
        assert address(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        with bound(0, "--x", "::") as listener:
            assert address(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_port_that_another_took_meanwhile_is_one_line() -> None:
    with bound(0, "--x") as first, bound(first.getsockname()[1], "--x") as second:
        first.listen()
        with (
            pytest.raises(UserError, match=r"http://127\.0\.0\.1:\d+ is taken"),
            listening(streaming(ModelStates()), second, ModelStates()),
        ):
            pass


def test_the_socket_is_closed_at_the_end() -> None:
    listener = bound(0, "--x")
    with listening(streaming(ModelStates()), listener, ModelStates()):
        assert listener.fileno() >= 0
    assert listener.fileno() == -1
