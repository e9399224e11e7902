"""HTTP to a server on this machine: JSON in, JSON or server-sent events out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx

JSON = {"Content-Type": "application/json"}
"""Triton 24.10 crashes on a body above 4 MB without it."""


@cache
def _client() -> httpx.Client:
    """One client for all threads. No proxy stands before this machine; a connection serves one request."""
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def get(url: str, timeout: float = 5) -> httpx.Response:
    """The answer to a GET.

    Raises:
        httpx.HTTPError: no answer came within `timeout` seconds.
    """
    return _client().get(url, timeout=timeout)


def post(url: str, body: Any, timeout: float = 300) -> tuple[int, Any]:
    """(HTTP status, JSON or text of the answer) of a POST.

    Args:
        url: where to.
        body: sent as JSON; bytes are sent as they are.
        timeout: seconds that the server may be silent.

    Raises:
        httpx.HTTPError: no answer came.
    """
    response = _client().post(url, content=_content(body), headers=JSON, timeout=timeout)
    try:
        return response.status_code, response.json()
    except ValueError:
        return response.status_code, response.text


def stream(url: str, body: Any, timeout: float = 300) -> Iterator[Any]:
    """The events of a server-sent stream, as JSON. Closing the iterator hangs up.

    Raises:
        httpx.HTTPStatusError: the server refused; the response is read.
        httpx.HTTPError: the connection broke.
    """
    with _client().stream("POST", url, content=_content(body), headers=JSON, timeout=timeout) as response:
        if response.is_error:
            response.read()
        response.raise_for_status()
        for line in _lines(response.iter_bytes()):
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines that end in a line feed. httpx's iter_lines also ends one at U+2028, which JSON may hold."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _content(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()
