"""Errors in the API's form: {"error": {"message", "type", "param", "code"}}.

Reference: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.ship.web.model_states import RETRY_AFTER

log = logging.getLogger(__name__)


class Refusal(Exception):
    """An error as the API has it.

    Attributes:
        status: of HTTP.
        body: of the response.
    """

    def __init__(self, status: int, message: str, kind: str, **details: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": None, **details}}

    def response(self) -> Response:
        """The HTTP response; a 503 says when to ask again."""
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status == 503 else None
        return JSONResponse(self.body, self.status, headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """The error for a request that is wrong."""
    return Refusal(400, message, "invalid_request_error", param=param, code=code)


def down(message: str, code: str | None = None) -> Refusal:
    """The error where a model cannot answer now, whatever the request."""
    return Refusal(503, message, "server_error", code=code)


def failed(message: str) -> Refusal:
    """The error where a request that was in order could not be answered."""
    return Refusal(500, message, "server_error")


def unexpected(error: Exception) -> Refusal:
    """The error for an exception that nobody foresaw. Its traceback goes into the log, not to the client."""
    log.error("a request ended with an unexpected error", exc_info=error)
    return failed("an unexpected error; the server's log has it")


def install(app: FastAPI) -> None:
    """Answers every exception of the endpoints, and every path and method that there is none for."""
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _no_endpoint)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(_: Request, error: Any) -> Response:
    refusal: Refusal = error
    return refusal.response()


async def _no_endpoint(request: Request, error: Any) -> Response:
    """404 and 405, and what else the framework refuses."""
    place = f"{request.method} {request.url.path:.200}"
    messages = {404: f"Invalid URL ({place})", 405: f"Not allowed: {place}; use another HTTP method"}
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    message = messages.get(error.status_code, str(error.detail))
    refusal = Refusal(error.status_code, message, "invalid_request_error", code=code)
    return JSONResponse(refusal.body, refusal.status, error.headers)


async def _nobody(_: Request, error: Exception) -> Response:
    """The client is gone; nothing that is sent arrives."""
    return bad(f"the connection was closed within the body{f': {error}' if str(error) else ''}").response()


async def _unexpected(_: Request, error: Exception) -> Response:
    return unexpected(error).response()
