"""What stands before the models of `pipeline serve`: the gate, and the OpenAI front where it is wanted."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field

from pipeline.ship.ports import Ports, bound
from pipeline.ship.triton import gate
from pipeline.ship.triton.repository import ENDING
from pipeline.ship.triton.server import Server
from pipeline.ship.triton.wheel import REQUEST_TIMEOUT
from pipeline.ship.web.guard import Access
from pipeline.ship.web.model_states import ModelStates
from pipeline.types import UserError

log = logging.getLogger(__name__)
LONGEST = 86_400.0
"""Seconds that a request may be allowed to take."""


@dataclass(frozen=True, slots=True)
class Fronts:
    """What stands before the models.

    Attributes:
        openai_port: where the OpenAI front listens; None for no front.
        access: who may ask, and where the HTTP ports listen.
        request_timeout: seconds from a request's arrival to its end, at most.

    Raises:
        UserError: no such time.
    """

    openai_port: int | None = None
    access: Access = field(default_factory=Access)
    request_timeout: float = REQUEST_TIMEOUT

    def __post_init__(self) -> None:
        if not 0 < self.request_timeout <= LONGEST:
            given = f"{self.request_timeout:g}"
            raise UserError(f"--request-timeout takes seconds, above 0 and up to {LONGEST:.0f}, not {given}")

    @contextmanager
    def bound(self, ports: Ports) -> Iterator[list[socket.socket]]:
        """The sockets of the gate and of the OpenAI front, before minutes go into starting the server.

        Args:
            ports: of the gate and of the server behind it.

        Raises:
            UserError: a port is taken or named twice, or the host is none of this machine.
        """
        host = self.access.host
        numbers = [number for number in (*astuple(ports), self.openai_port) if number]
        if twice := {number for number in numbers if numbers.count(number) > 1}:
            raise UserError(f"port {twice.pop()} is named twice; each of the ports has a number of its own")
        if not self.access.is_local and self.access.api_key is None:
            log.warning("whoever reaches %s may use the models: set --api-key (or PIPELINE_API_KEY)", host)
        with ExitStack() as stack:
            sockets = [stack.enter_context(bound(ports.http, "--http-port", host))]
            if self.openai_port is not None:
                sockets.append(stack.enter_context(bound(self.openai_port, "--openai-port", host)))
            yield sockets

    @contextmanager
    def opened(
        self, server: Server, models: Sequence[str], sockets: list[socket.socket], states: ModelStates
    ) -> Iterator[list[str]]:
        """All of them, in threads of this process; gives the URL of the gate, then that of the OpenAI front.

        Args:
            server: that they stand before.
            models: those that are served.
            sockets: what `bound` gave.
            states: which of the models answer.
        """
        from pipeline.ship import openai_front

        access, limit = self.access, self.request_timeout
        texts = [name for name in models if name.endswith(ENDING)]
        with ExitStack() as stack:
            first = gate.listening(server.http, models, sockets[0], access, states, limit)
            urls = [stack.enter_context(first)]
            for listener in sockets[1:]:
                front = openai_front.listening(server.grpc, texts, listener, access, states, limit)
                urls.append(stack.enter_context(front))
            yield urls
