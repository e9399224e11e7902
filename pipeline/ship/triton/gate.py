"""The gate: a thin reverse proxy before Triton's own HTTP, which is on a port that only it knows.

Triton 24.10 crashes on form-encoded bodies above 4 MB, never answers requests that were in a model whose
process was killed, answers 400 while a model is loaded again, runs code that comes with a request to load a
model, lets clients read shared memory and name the file of a trace, and ends on some JSON. Behind the gate no
body is a form, each has a bound and was read (`bodies`), an inference has an end, a model that is down is
503, models are loaded from the repository alone, and nothing of the server is set.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import quote

import httpx
from starlette.types import Message, Receive, Scope, Send

from pipeline.ship.triton import bodies
from pipeline.ship.web import listening as web
from pipeline.ship.web.guard import Access, Guard, triton_form
from pipeline.ship.web.model_states import DOWN_WORDS, RETRY_AFTER, ModelStates, Outage
from pipeline.types import UserError

BODY = 64 * 2**20
"""Bytes of a request's body, at most: tensors are large."""
INFERENCE = re.compile(r"/v2/models/([^/]+)(/versions/[^/]+)?/(infer|generate|generate_stream)")
REPOSITORY = re.compile(r"/v2/repository/(index|models/[^/]+/(load|unload))")
"""What is posted beside inferences; Triton has more, which is for who owns the machine: shared memory, logs,
traces."""
METHODS = ("GET", "POST")
"""Triton sends a body after the header that answers HEAD: the next request on that connection would fail."""
LOAD = re.compile(r"/v2/repository/.*/load/?", re.DOTALL)
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
NOT_HANDED_ON = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    *(b"proxy-authenticate", b"proxy-authorization", b"host", b"expect", b"authorization"),
}
"""Headers of one connection (RFC 9110, 7.6.1), and those that are for the gate."""
SIZE = b"inference-header-content-length"
BUSY_WORDS = ("queue is full", "exceeds maximum queue size")
UNKNOWN_WORDS = ("unknown model", "no available versions", "not ready")
"""Words of Triton's errors for a model that it does not have just now."""
UNREAD = "failed to parse the request JSON"
"""What Triton answers 500 to, though the request is wrong."""
GONE = "the client has hung up"


@contextmanager
def listening(
    upstream: str,
    models: Sequence[str],
    listener: socket.socket,
    access: Access,
    states: ModelStates,
    request_timeout: float,
) -> Iterator[str]:
    """The gate, in a thread of this process; gives its URL.

    Args:
        upstream: URL of Triton's own HTTP.
        models: those that are served; one that Triton does not know is being loaded.
        listener: a bound socket, which is closed at the end.
        access: who may ask.
        states: which models answer; at the end they are told that the server stops.
        request_timeout: seconds that an inference may take.
    """
    gate = Guard(Gate(upstream, models, states, request_timeout), access, BODY, triton_form)
    with web.listening(gate, listener, states) as url:
        yield url


class Gate:
    """An ASGI application that hands requests on to Triton, and its answers back, piece by piece."""

    def __init__(
        self, upstream: str, models: Sequence[str], states: ModelStates, request_timeout: float
    ) -> None:
        self.upstream, self.models, self.states = httpx.URL(upstream), models, states
        self.request_timeout = request_timeout
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx.AsyncClient(trust_env=False, timeout=None, limits=limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's life."""
        if scope["type"] == "http":
            await _Relay(self, scope, receive, send).run()
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.client.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class _Relay:
    """One request on its way to Triton, and the answer on its way back."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate, self.scope, self.receive = gate, scope, receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.path: str = scope["path"]
        match = INFERENCE.fullmatch(self.path)
        self.model = match[1] if match else None
        self.is_known = match is not None and match[1] in gate.models and match[2] is None
        self.is_stream = self.path.endswith("/generate_stream")
        self.is_started, self.is_done, self.tail = False, False, b""
        self._send = send

    async def run(self) -> None:
        """From the first byte to the last."""
        seconds = self.gate.request_timeout if self.model else None
        try:
            async with self.gate.states.attending(self.model, seconds) as attendance:
                await self._exchange(attendance.end)
        except Outage as error:
            await self._end(str(error))
        except httpx.HTTPError:
            await self._end("the Triton server does not answer")

    async def _exchange(self, end: Callable[[str], None]) -> None:
        parts, method = self.path.split("/")[1:], self.scope["method"]
        if "" in parts[:-1] or {".", ".."} & set(parts):  # what httpx would resolve, `load/.` to `load/`
            await self._answer(400, f"{self.path[:200]!r} is no plain path")
            return
        if method not in ("GET", "HEAD") and not (self.model or REPOSITORY.fullmatch(self.path)):
            await self._answer(403, f"{self.path[:200]!r} is not for clients; on this machine gRPC has it")
            return
        if method not in METHODS:
            await self._answer(405, f"{method} is not taken; use one of {', '.join(METHODS)}")
            return
        if b"content-encoding" in self.headers:  # a bound on the body would be none
            await self._answer(415, "compressed bodies are not read")
            return
        content = b"".join([piece async for piece in self._body()]) if self._has_body() else None
        if content and LOAD.fullmatch(self.path) and content.strip() != b"{}":
            await self._answer(403, "models are loaded from the repository alone, without parameters")
            return
        if content:
            sizes = [value for name, value in self.scope["headers"] if name == SIZE]
            header = b",".join(sizes).decode("latin-1") if sizes else None
            try:
                await asyncio.to_thread(bodies.check, content, header, self.path.endswith("/infer"))
            except UserError as error:
                await self._answer(400, str(error))
                return
        hangup = asyncio.create_task(self._until_hangup(end))
        try:
            await self._relay(content)
        finally:
            hangup.cancel()

    async def _relay(self, content: bytes | None) -> None:
        target = quote(self.path, safe="/:@!$&'()*+,;=~-._").encode()
        target += b"?" + self.scope["query_string"] if self.scope["query_string"] else b""
        url = self.gate.upstream.copy_with(raw_path=target)
        request = httpx.Request(self.scope["method"], url, headers=self._request_headers(), content=content)
        response = await self.gate.client.send(request, stream=True)
        try:
            if response.is_error and self.model is not None:
                await self._stated(response.status_code, (await response.aread()).decode(errors="replace"))
                return
            headers = [
                (name.lower(), value)
                for name, value in response.headers.raw
                if name.lower() not in NOT_HANDED_ON
            ]
            await self._start(response.status_code, headers)
            async for piece in response.aiter_raw():
                await self.send({"type": "http.response.body", "body": piece, "more_body": True})
            await self.send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    async def _stated(self, status: int, body: str) -> None:
        """An error that Triton states, with the status that it should have."""
        reason = _reason(body)
        words = (*DOWN_WORDS, *BUSY_WORDS, *(UNKNOWN_WORDS if self.is_known else ()))
        if any(word in reason for word in words):
            raise Outage(reason)
        await self._answer(httpx.codes.BAD_REQUEST if UNREAD in reason else status, reason)

    def _has_body(self) -> bool:
        return self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers

    def _request_headers(self) -> list[tuple[bytes, bytes]]:
        dropped = {name.strip().lower() for name in self.headers.get(b"connection", b"").split(b",")}
        dropped |= {*NOT_HANDED_ON, b"content-type"}
        headers = [(name, value) for name, value in self.scope["headers"] if name not in dropped]
        kind = self.headers.get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() in ("", *FORMS):
            kind = "application/json"
        return [*headers, (b"content-type", kind.encode("latin-1"))] if self._has_body() else headers

    async def _body(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Outage(GONE)
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def _until_hangup(self, end: Callable[[str], None]) -> None:
        """Ends the request when its client is gone, so that Triton ends it too."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        end(GONE)

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        self.is_started = True
        self.is_done = message["type"] == "http.response.body" and not message.get("more_body")
        self.tail = (self.tail + message.get("body", b""))[-2:]
        await self._send(message)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def _answer(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status == httpx.codes.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"%d" % RETRY_AFTER))
        if status == httpx.codes.METHOD_NOT_ALLOWED:
            headers.append((b"allow", ", ".join(METHODS).encode()))
        await self._start(status, headers)
        await self.send({"type": "http.response.body", "body": body})

    async def _end(self, message: str) -> None:
        """The end of a request that Triton did not end. A whole answer that has begun can only break off."""
        if not self.is_started:
            await self._answer(httpx.codes.SERVICE_UNAVAILABLE, message)
        elif self.is_stream and not self.is_done:
            gap = b"" if self.tail in (b"", b"\n\n") else b"\n\n"
            event = gap + b"data: " + json.dumps({"error": message}).encode() + b"\n\n"
            await self.send({"type": "http.response.body", "body": event})


def _reason(message: str) -> str:
    """The words of an error as Triton writes it, whole or as an event."""
    try:
        answer = json.loads(message.removeprefix("data: "))
    except (ValueError, RecursionError):
        return message
    return str(answer["error"]) if isinstance(answer, dict) and "error" in answer else message
