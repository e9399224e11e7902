"""Clients that mean no good, or do not know better: each does one thing to a server, again and again."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from pipeline.ship.triton import http

NAME = "tiny-base"
MODEL = f"{NAME}_generate"
LONG = "a way to see the world " * 40
ERRORS = (httpx.HTTPError, OSError, StopIteration)
"""How a connection may end for one who abuses it."""


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        http: URL of the text models in Triton's own protocol.
        openai: URL of the front, up to /v1.
    """

    http: str
    openai: str

    def url(self, what: str = "generate", model: str = MODEL) -> str:
        return f"{self.http}/v2/models/{model}/{what}"

    def completions(self) -> str:
        return f"{self.openai}/completions"


Abuse = Callable[[Address, random.Random], None]


def huge_lists(address: Address, draw: random.Random) -> None:
    """Many prompts in one request, some more than may be."""
    prompts = [LONG] * draw.choice((60, 64, 3000))
    body = {"model": NAME, "prompt": prompts, "max_tokens": draw.choice((64, 500)), "ignore_eos": True}
    _post(address.completions(), body, timeout=draw.choice((2, 20)))


def giant_bodies(address: Address, draw: random.Random) -> None:
    """Some MB of prompt."""
    text = "a b " * draw.choice((300_000, 1_500_000))
    if draw.random() < 0.5:
        _post(address.url(), {"text_input": text}, timeout=30)
    else:
        _post(address.completions(), {"model": NAME, "prompt": text}, timeout=30)


def bad_json(address: Address, draw: random.Random) -> None:
    """No JSON, nested JSON, JSON that is no object."""
    body = draw.choice(
        (b"", b"{", b"[" * 50_000, b'{"text_input": ', b"[]", b"null", b"\xff\xfe", b'"a"' * 9)
    )
    _post(draw.choice((address.url(), address.completions())), body)


def hang_ups(address: Address, draw: random.Random) -> None:
    """Long texts that nobody waits for.

    Not whole texts of Triton's own protocol: its HTTP server does not notice that their clients are gone, and
    they run to their end or their time limit.
    """
    if draw.random() < 0.5:
        body = {"text_input": "the time", "max_tokens": 3000, "stream": True, "ignore_eos": True}
        events = http.stream(address.url("generate_stream"), body, timeout=20)
        next(events)
        events.close()
    else:
        body = {"model": NAME, "prompt": LONG, "max_tokens": 3000, "ignore_eos": True}
        _post(address.completions(), body, timeout=0.3)


def slow_readers(address: Address, draw: random.Random) -> None:
    """A stream of which a few bytes are read, then nothing for seconds."""
    body = {"text_input": "people", "max_tokens": 400, "stream": True, "ignore_eos": True}
    content = json.dumps(body).encode()
    with _socket(address.http) as connection:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
        head = f"POST /v2/models/{MODEL}/generate_stream HTTP/1.1\r\nHost: {_host(address.http)}\r\n"
        connection.sendall(f"{head}{kind}\r\n\r\n".encode())
        connection.sendall(content)
        for _ in range(4):
            connection.recv(50)
            time.sleep(draw.random())


def half_surrogates(address: Address, draw: random.Random) -> None:
    """Text that no UTF-8 holds."""
    text = draw.choice((b'"\\ud800"', b'"\\udc00 a"', b'"\xed\xa0\x80"', b'"\xff"', b'"a\\u0000b"'))
    if draw.random() < 0.5:
        _post(address.url(), b'{"text_input": %s, "max_tokens": 3}' % text)
    else:
        _post(address.completions(), b'{"model": "%s", "prompt": %s}' % (NAME.encode(), text))


def nonsense(address: Address, draw: random.Random) -> None:
    """Fields that are unknown, of another type, or out of range."""
    wrong = draw.choice((
        {"max_tokens": -1}, {"max_tokens": 1 << 40}, {"temperature": "hot"}, {"top_p": 7}, {"seed": -1},
        {"stop_words": ["x"] * 999}, {"share": "s" * 9999}, {"no_such_field": 1}, {"text_input": None},
    ))  # fmt: skip
    _post(address.url(), {"text_input": "a", **wrong})
    _post(address.completions(), {"model": "nobody", "prompt": 3, "n": 10**9, "stop": [1], **wrong})


def idle_connections(address: Address, draw: random.Random) -> None:
    """Connections that say nothing, or half of a request."""
    with contextlib.ExitStack() as stack:
        for url in (address.http, address.openai) * 4:
            connection = stack.enter_context(_socket(url))
            connection.sendall(draw.choice((b"", b"POST /", b"GET / HTTP/1.1\r\nHost: x\r\n")))
        time.sleep(draw.random() * 3)


KINDS: dict[str, Abuse] = {
    "huge lists": huge_lists,
    "giant bodies": giant_bodies,
    "bad JSON": bad_json,
    "hang-ups": hang_ups,
    "slow readers": slow_readers,
    "half surrogates": half_surrogates,
    "nonsense": nonsense,
    "idle connections": idle_connections,
}


def _post(url: str, body: object, timeout: float = 20) -> None:
    http.post(url, body, timeout=timeout)


def _host(url: str) -> str:
    return httpx.URL(url).netloc.decode()


def _socket(url: str) -> socket.socket:
    place = httpx.URL(url)
    return socket.create_connection((place.host, place.port), timeout=20)
