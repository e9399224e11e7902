"""Connections: a silent, slow or deaf client is let go, one that goes on is not."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from pipeline.ship.web import connections
from pipeline.ship.web.connections import BUSY, BoundedConnection
from pipeline.ship.web.guard import Access, Guard, openai_form, triton_form
from tests.serving import until
from tests.web import echo, raw, received, served

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "silence", 0.5)


@pytest.mark.parametrize(
    "sent",
    [
        (),
        (b"GET",),
        (HEAD,),
        (HEAD + b"Content-Length: 9\r\n\r\n",),
        (HEAD + b"Content-Length: 9\r\n\r\nhalf",),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",),
    ],
    ids=["nothing", "a word", "half a header", "no body", "half a body", "half the chunks"],
)
def test_a_silent_client_is_let_go(sent: tuple[bytes, ...]) -> None:
    with served(echo) as url, raw(url, *sent) as connection:
        assert received(connection) == b""


@pytest.mark.parametrize("head", [b"", HEAD + b"Content-Length: 999999\r\n\r\n"], ids=["header", "body"])
def test_a_slow_client_is_let_go_though_it_goes_on(head: bytes) -> None:
    with served(echo) as url, raw(url, head) as connection:
        connection.settimeout(0.05)
        for _ in range(200):
            try:
                connection.sendall(b"x")
                assert connection.recv(9) == b""
                return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("it was served for ten seconds")


def test_a_large_body_has_the_time_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "rate", 1000)
    head = HEAD + b"Content-Length: 2000\r\nConnection: close\r\n\r\n"
    with served(echo) as url, raw(url, head) as connection:
        for _ in range(20):
            connection.sendall(b"x" * 100)
            time.sleep(0.06)
        assert received(connection).count(b"x") == 2000


def test_a_kept_connection_serves_again_and_is_closed_when_idle() -> None:
    request = HEAD + b"Content-Length: 1\r\n\r\nx"
    with served(echo) as url, raw(url, request) as connection:
        for _ in range(3):
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(65536)
            assert b"200 OK" in answer
            time.sleep(0.3)
            connection.sendall(request)
        assert received(connection).count(b"200 OK") == 1


def test_a_deaf_client_is_cut_and_one_that_reads_slowly_is_not() -> None:
    request = HEAD.replace(b"/", b"/big", 1) + b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    with served(echo) as url:
        with raw(url, request) as deaf:
            time.sleep(2)
            assert len(received(deaf)) < 2**26
        with raw(url, request) as slow:
            size = 0
            while piece := slow.recv(2**22):
                size += len(piece)
                time.sleep(0.03)
            assert size > 2**26


def test_one_more_than_the_most_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "most", 3)
    monkeypatch.setattr(BoundedConnection, "silence", 20)
    with served(echo) as url:
        with ExitStack() as stack:
            first = [stack.enter_context(raw(url, HEAD)) for _ in range(3)]
            with raw(url) as connection:
                assert received(connection) == BUSY
            first[0].sendall(b"Content-Length: 0\r\n\r\n")
            assert b"200 OK" in first[0].recv(999)

        def is_free() -> bool:
            with raw(url, HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n") as connection:
                return b"200 OK" in received(connection)

        until(is_free)


def test_a_header_is_bounded() -> None:
    with served(echo) as url, raw(url, HEAD + b"X: " + b"x" * 20_000) as connection:
        assert received(connection).startswith(b"HTTP/1.1 400")


def test_room_for_files_stays_below_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[tuple[int, int]] = []
    for limits in ((1024, 2048), (1024, -1), (9000, 9000)):
        system = SimpleNamespace(
            RLIMIT_NOFILE=7,
            RLIM_INFINITY=-1,
            getrlimit=lambda _, limits=limits: limits,
            setrlimit=lambda _, limits: wanted.append(limits),
        )
        monkeypatch.setattr(connections, "resource", system)
        connections.room_for_files()
    assert wanted == [(2048, 2048), (4096, -1)]


def test_a_reset_leaves_nothing() -> None:
    with served(echo) as url:
        for _ in range(5):
            with raw(url, HEAD) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with raw(url, HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n") as connection:
            assert b"200 OK" in received(connection)


def test_what_is_no_http_is_answered_in_the_applications_form() -> None:
    for form, kind in ((openai_form, "invalid_request_error"), (triton_form, None)):
        with (
            served(Guard(echo, Access(), 100, form)) as url,
            raw(url, b"\x16\x03\x01 no HTTP\r\n\r\n") as connection,
        ):
            head, _, body = received(connection).partition(b"\r\n\r\n")
        error = json.loads(body)["error"]
        assert head.startswith(b"HTTP/1.1 400") and b"application/json" in head.lower()
        assert (error["type"] if kind else None) == kind and "Invalid HTTP" in str(error)


@pytest.mark.parametrize("crumb", [b"1\r\nx\r\n", b"0001;y\r\nx\r\n", b"ff\r\n" + b"x" * 255 + b"\r\n"])
def test_a_body_in_crumbs_is_cut(crumb: bytes) -> None:
    """Four clients that send their bodies byte by byte would hold up all others for 20 s."""
    head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    for count in (1500, 6000):
        with served(echo) as url, raw(url) as connection:
            try:
                connection.sendall(head + crumb * count + b"0\r\n\r\n")
            except ConnectionError:
                assert count == 6000
                continue
            assert received(connection).startswith(b"HTTP/1.1 200") == (count == 1500)
