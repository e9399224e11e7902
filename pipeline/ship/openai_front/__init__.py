"""A small OpenAI-compatible front before the text models, for this machine and for tests.

A production Triton brings its own (`openai_frontend`), which sends the models the same fields.
API: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from pipeline.types import UserError


class Front:
    """The front in a thread of this process.

    Args:
        grpc: where Triton listens.
        models: its text models.
        host, port: where the front listens; 0 picks a free port.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, grpc: str, models: Sequence[str], host: str, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind((host, port))
        except OSError:
            self.socket.close()
            raise UserError(
                f"port {port} is taken; stop what listens there, or choose another --openai-port"
            ) from None
        self.url = f"http://{host}:{self.socket.getsockname()[1]}"
        uvicorn, app = _libraries(grpc, models)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=10)
        self.socket.close()


def _libraries(grpc: str, models: Sequence[str]) -> tuple[Any, Any]:
    """(uvicorn, the application)."""
    try:
        import uvicorn

        from pipeline.ship.openai_front.app import application
        from pipeline.ship.openai_front.pieces import Triton
    except ImportError as missing:
        raise UserError(
            f"the OpenAI front needs {missing.name}; run `pip install 'skip-pipeline[serve]'`"
        ) from None
    return uvicorn, application(Triton(grpc, models))
