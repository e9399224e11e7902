"""Ports on this machine: chosen, and kept while something starts to listen on them."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.types import UserError

HOST = "127.0.0.1"


def bound(port: int, option: str, host: str = HOST) -> socket.socket:
    """A socket that is bound to a port; 0 picks a free one.

    Args:
        port: its number.
        option: of the command line, by which another one is chosen.
        host: an address of this machine, or a name that has one.

    Raises:
        UserError: the port is taken, or may not be had; or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host} is no address and no known name") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host} is no address of this machine") from None
        if error.errno == errno.EACCES:
            raise UserError(f"port {port} may not be had by this user; choose another {option}") from None
        raise UserError(
            f"port {port} is taken; stop what listens there, or choose another {option}"
        ) from None
    return listener


@dataclass(frozen=True, slots=True)
class Ports:
    """Of HTTP, gRPC and metrics; 0 picks a free one."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def fixed(self) -> Ports:
        """The same, with free ports in place of 0.

        Raises:
            UserError: a port is taken.
        """
        with ExitStack() as stack:
            numbers = [
                stack.enter_context(bound(getattr(self, name), f"--{name}-port")).getsockname()[1]
                for name in ("http", "grpc", "metrics")
            ]
        return Ports(*numbers)
