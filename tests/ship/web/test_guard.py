"""The guard: who may ask, and how much; what passes, passes unchanged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from pipeline.ship.web.guard import Access, Guard, openai_form, triton_form
from pipeline.types import UserError
from tests.web import echo, raw, received, served


def asked(access: Access, path: str = "/", form=triton_form, **headers: str) -> tuple[int, Any, Any]:
    """(status, body, headers) of a POST through the guard, of 10 bytes at most."""

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(echo, access, 10, form))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, headers=headers, content=b"0123456789")

    response = asyncio.run(post())
    return response.status_code, response.text, response.headers


@pytest.mark.parametrize(
    ("host", "access", "status"),
    [
        ("localhost", Access(), 200),
        ("LOCALHOST:1234", Access(), 200),
        ("localhost.:80", Access(), 200),
        ("127.0.0.1:8000", Access(), 200),
        ("[::1]:8000", Access(), 200),
        ("evil.example", Access(), 421),
        ("evil.example:8000", Access(), 421),
        ("localhost.evil.example", Access(), 421),
        ("evil@localhost", Access(), 421),
        ("localhost/evil", Access(), 421),
        ("localhost:evil", Access(), 421),
        ("[::1", Access(), 421),
        ("", Access(), 421),
        ("192.168.0.7", Access(), 421),
        ("192.168.0.7:8000", Access("192.168.0.7"), 200),
        ("192.168.0.7", Access("0.0.0.0"), 200),
        ("[fe80::1]", Access("::"), 200),
        ("evil.example", Access("0.0.0.0"), 421),
        ("llm.lan:80", Access("0.0.0.0", ("other.lan", "LLM.lan")), 200),
        ("sub.llm.lan", Access("0.0.0.0", ("llm.lan",)), 421),
    ],
)
def test_hosts(host: str, access: Access, status: int) -> None:
    assert asked(access, Host=host)[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://llm.lan", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("file://", 403),
        ("localhost", 403),
        ("chrome-extension://localhost", 403),
    ],
)
def test_pages_of_other_sites(origin: str, status: int) -> None:
    assert asked(Access(allowed_hosts=("llm.lan",)), Origin=origin)[0] == status


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("Bearer sesame", 200),
        ("bearer  sesame", 200),
        ("Bearer Sesame", 401),
        ("Bearer sesame2", 401),
        ("Bearer", 401),
        ("Basic sesame", 401),
        ("sesame", 401),
        ("Bearer sésame", 401),
        ("", 401),
    ],
)
def test_keys(sent: str, status: int) -> None:
    access = Access(api_key="sesame")
    assert "sesame" not in repr(access)
    got, body, headers = asked(access, form=openai_form, Authorization=sent.encode("latin-1"))
    assert got == status
    if status == 401:
        error = json.loads(body)["error"]
        assert error["code"] == "invalid_api_key" and error["type"] == "invalid_request_error"
        assert headers["www-authenticate"] == "Bearer" and "sesame" not in body
    assert asked(Access(), Authorization=sent.encode("latin-1"))[0] == 200


def test_those_who_watch_the_server_need_no_key() -> None:
    access = Access(api_key="sesame")
    assert asked(access, "/v2/health/ready")[0] == 200 and asked(access, "/v2/health/readyx")[0] == 401
    assert asked(access, "/v2/health/ready", Host="evil")[0] == 421


def test_keys_and_hosts_that_no_client_could_send_are_refused() -> None:
    for key in ("", "two words", "line\n", "schlüssel"):
        with pytest.raises(UserError, match="the API key must be of visible ASCII"):
            Access(api_key=key)
    for host in ("", "http://llm.lan", "llm.lan:80", "llm.lan/x", "a b@c", "[::1]:80"):
        with pytest.raises(UserError, match="--allowed-host takes a host without scheme and port"):
            Access(allowed_hosts=(host,))
    assert Access(allowed_hosts=("[fe80::1]", "LLM.lan")).admits("llm.lan:1")
    assert [Access(host).is_local for host in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "llm.lan")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def parsing() -> FastAPI:
    """An application that reads JSON, as the OpenAI front does."""
    app = FastAPI()

    @app.post("/")
    async def read(body: dict[str, Any]) -> Any:
        return body

    @app.post("/stream")
    async def stream(request: Request) -> Any:
        return len(await request.body())

    return app


@pytest.mark.parametrize("app", [echo, parsing()], ids=["plain", "FastAPI"])
@pytest.mark.parametrize("size", [99, 1_000_000])
def test_bodies_are_bounded_declared_or_not(app: Any, size: int) -> None:
    inner = b'"' + b"x" * (size - 10) + b'"'
    body = b'{"a":' + inner + b"}  "
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    declared = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    guarded = Guard(app, Access(), 100, openai_form)
    with served(guarded) as url:
        for request in (declared, chunked):
            with raw(url, request) as connection:
                answer = received(connection)
            status = b"200" if len(body) <= 100 else b"413"
            assert answer.startswith(b"HTTP/1.1 " + status), answer
            assert (b"body_too_large" in answer) == (status == b"413")


def test_a_heap_of_headers_is_refused() -> None:
    assert asked(Access(), **{f"x-{number}": "x" * 1000 for number in range(40)})[0] == 431


def test_a_long_header_or_target_is_refused() -> None:
    """Triton hangs up on it, which would look as if it were down."""
    assert asked(Access(), x="x" * 7990)[0] == 200 and asked(Access(), path=f"/?{'x' * 7990}")[0] == 200
    assert asked(Access(), x="x" * 8000)[0] == 431 and asked(Access(), path=f"/?{'x' * 8000}")[0] == 414


def test_a_body_with_two_lengths_is_refused_and_the_connection_closed() -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    body = b"Content-Length: %d\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for length in (0, 3, 13):
        with (
            served(Guard(echo, Access(), 100, openai_form)) as url,
            raw(url, head + body % length) as connection,
        ):
            answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1, answer


@pytest.mark.parametrize("name", ["Host", "Origin", "Authorization", "Content-Type"])
def test_a_header_that_stands_twice_is_refused(name: str) -> None:
    """Of two origins the last one was taken, whatever the first was."""
    values = {"Host": "localhost", "Origin": "http://localhost", "Content-Type": "application/json"}
    value = values.get(name, "Bearer sesame")
    head = [("Host", "localhost")] if name != "Host" else []
    scope = {
        "type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
        "headers": [(key.lower().encode(), text.encode()) for key, text in [*head, *[(name, value)] * 2]],
    }  # fmt: skip
    guard = Guard(echo, Access(api_key="sesame" if name == "Authorization" else None), 10, triton_form)
    refused = guard._refusal(scope)
    assert refused is not None and refused.status == 400 and "stands twice" in refused.message
    scope["headers"].pop()
    assert guard._refusal(scope) is None
