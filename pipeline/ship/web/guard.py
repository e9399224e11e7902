"""Who may ask: the guard before an HTTP application.

It refuses foreign hosts (a page of a browser that reaches this machine by a name of its own: DNS rebinding),
other sites' pages, requests without the key, and bodies that are too large.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.ship.ports import HOST
from pipeline.types import UserError

ADVICE = "`pipeline serve --allowed-host HOST` allows it"
LOCAL = ("localhost", "127.0.0.1", "::1")
FREE = ("/v2/health/live", "/v2/health/ready")
"""Paths that ask for no key, for those who watch the server: they say yes or no, and cost nothing."""
HEADER = 32 * 1024
"""Bytes of all headers of a request; the connection bounds only what comes in pieces."""

LINE = 8000
"""Bytes of one header or of a request's target; Triton hangs up on more than 8 KiB."""

ONCE = (b"host", b"origin", b"authorization", b"content-length", b"content-type", b"content-encoding")
"""Headers that a request has once: of two, this server and the next one might take another each."""


def host_name(netloc: str) -> str | None:
    """The host of HOST[:PORT], in lower case and without brackets; None where it is no such thing."""
    try:
        parts = urlsplit(f"//{netloc}")
        parts.port  # noqa: B018 - raises on one that is no number
    except ValueError:
        return None
    is_plain = parts.netloc == netloc and "@" not in netloc
    return parts.hostname.rstrip(".") or None if is_plain and parts.hostname else None


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        host: where the ports listen.
        allowed_hosts: other names by which clients reach them.
        api_key: that clients must send; None asks for none.

    Raises:
        UserError: a host or key that no client could send.
    """

    host: str = HOST
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        key = self.api_key
        if key is not None and (not key or not all(33 <= ord(letter) <= 126 for letter in key)):
            raise UserError("the API key must be of visible ASCII letters, and not empty")
        for host in self.allowed_hosts:
            name = host_name(host)
            if name is None or name not in (host.lower(), host.lower().strip("[]")):
                raise UserError(f"--allowed-host takes a host without scheme and port, not {host!r}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the ports."""
        return self.host in LOCAL or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    def admits(self, netloc: str) -> bool:
        """Whether the server goes by this HOST[:PORT].

        Where it listens on every address of the machine, any address is one of its own for all that it knows;
        a page cannot rebind an address, only a name.
        """
        name = host_name(netloc)
        if name is None:
            return False
        allowed = {host_name(host) for host in self.allowed_hosts} | {self.host.lower(), *LOCAL}
        is_everywhere = _is_address(self.host) and ipaddress.ip_address(self.host).is_unspecified
        return name in allowed or (is_everywhere and _is_address(name))

    def admits_origin(self, origin: str) -> bool:
        """Whether a page of this origin (SCHEME://HOST[:PORT], or null) may ask."""
        scheme, _, netloc = origin.partition("://")
        return scheme in ("http", "https") and self.admits(netloc)

    def has_key(self, authorization: str) -> bool:
        """Whether the header holds the key, compared in constant time."""
        if self.api_key is None:
            return True
        scheme, _, key = authorization.partition(" ")
        is_equal = hmac.compare_digest(key.strip().encode("latin-1"), self.api_key.encode())
        return scheme.lower() == "bearer" and is_equal


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request does not reach the application."""

    status: int
    message: str
    code: str
    headers: dict[str, str] = field(default_factory=dict)


def triton_form(refused: Refused) -> dict[str, Any]:
    """An error as Triton writes it."""
    return {"error": refused.message}


def openai_form(refused: Refused) -> dict[str, Any]:
    """An error as OpenAI's API writes it."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {"error": {"message": refused.message, "type": kind, "param": None, "code": refused.code}}


@dataclass(frozen=True, slots=True)
class Guard:
    """An ASGI application before another one. Answers pass through unchanged, piece by piece.

    Attributes:
        app: the application.
        access: who may ask.
        largest: bytes of a request's body, at most.
        form: how an error is written.
    """

    app: ASGIApp
    access: Access
    largest: int
    form: Callable[[Refused], dict[str, Any]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that is refused; hands on what is not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif (refused := self._refusal(scope)) is not None:
            await self._answer(send, refused)
        else:
            await self._bounded(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER:
            return Refused(431, f"the headers have more than {HEADER} bytes", "headers_too_large")
        target = len(scope.get("raw_path", b"")) + len(scope["query_string"])
        if target > LINE:
            return Refused(414, f"the target has more than {LINE} bytes", "target_too_long")
        if any(len(name) + len(value) > LINE for name, value in scope["headers"]):
            return Refused(431, f"a header has more than {LINE} bytes", "headers_too_large")
        names = [name for name, _ in scope["headers"]]
        if twice := next((name for name in ONCE if names.count(name) > 1), None):
            return Refused(400, f"the header {twice.decode()} stands twice", "bad_header")
        if b"content-length" in headers and b"transfer-encoding" in headers:  # RFC 9112, 6.1: smuggling
            message = "a body has either a Content-Length or a Transfer-Encoding"
            return Refused(400, message, "bad_framing", {"Connection": "close"})
        if not scope["path"].startswith("/"):
            return Refused(400, "the target of a request must be a path", "bad_target")
        if b"host" in headers and not self.access.admits(headers[b"host"]):
            message = f"this server is not {headers[b'host'][:100]}; {ADVICE}"
            return Refused(421, message, "foreign_host")
        if b"origin" in headers and not self.access.admits_origin(headers[b"origin"]):
            message = f"pages of {headers[b'origin'][:100]} may not ask; {ADVICE}"
            return Refused(403, message, "foreign_origin")
        if scope["path"] not in FREE and not self.access.has_key(headers.get(b"authorization", "")):
            message = "this server asks for its API key: send `Authorization: Bearer KEY`"
            return Refused(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", "0")
        return self._too_large() if length.isdecimal() and int(length) > self.largest else None

    def _too_large(self) -> Refused:
        return Refused(413, f"the body has more than {self.largest:,} bytes", "body_too_large")

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with a body that is counted as it comes."""
        size, is_over, is_started = 0, False, False

        async def counted() -> Message:
            nonlocal size, is_over
            message = await receive()
            size += len(message.get("body", b""))
            is_over = is_over or size > self.largest
            if is_over:
                raise HTTPException(413)  # FastAPI lets this one pass through its reading of bodies
            return message

        async def unless_over(message: Message) -> None:
            nonlocal is_started
            if is_started or not is_over:  # else the refusal below stands in its place
                is_started = True
                await send(message)

        try:
            await self.app(scope, counted, unless_over)
        except HTTPException:
            if not is_over:
                raise
        if is_over and not is_started:
            await self._answer(send, self._too_large())

    async def _answer(self, send: Send, refused: Refused) -> None:
        body = json.dumps(self.form(refused)).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
        headers = [(name.lower().encode(), value.encode()) for name, value in head.items()]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
