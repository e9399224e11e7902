"""A small OpenAI-compatible front before the text models, for this machine and for tests.

A production Triton brings its own (`openai_frontend`), which sends the models the same fields.
API: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.ship.openai_front.app import application
from pipeline.ship.openai_front.events import TextModels
from pipeline.ship.triton.wheel import REQUEST_TIMEOUT
from pipeline.ship.web import listening as web
from pipeline.ship.web.guard import Access, Guard, openai_form
from pipeline.ship.web.model_states import ModelStates

BODY = 4 * 2**20
"""Bytes of a request's body, at most."""


@contextmanager
def listening(
    grpc: str,
    models: Sequence[str],
    listener: socket.socket,
    access: Access | None = None,
    states: ModelStates | None = None,
    request_timeout: float = REQUEST_TIMEOUT,
) -> Iterator[str]:
    """The front, in a thread of this process; gives its URL.

    Args:
        grpc: host:port of Triton's gRPC.
        models: its text models.
        listener: a bound socket, which is closed at the end.
        access: who may ask; by default whoever reaches the socket by one of this machine's names.
        states: which models answer; at the end they are told that the server stops.
        request_timeout: seconds that a request may take, its wait included.
    """
    states = states or ModelStates()
    app = application(TextModels(grpc, models, request_timeout, states))
    guarded = Guard(app, access or Access(), BODY, openai_form)
    with web.listening(guarded, listener, states) as url:
        yield url
