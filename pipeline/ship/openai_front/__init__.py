"""A small OpenAI-compatible front before the text models, for this machine and for tests.

A production Triton brings its own (`openai_frontend`), which sends the models the same fields.
API: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from pipeline.ship.openai_front.app import application
from pipeline.ship.openai_front.events import TextModels
from pipeline.ship.ports import HOST, bound


@contextmanager
def listening(grpc: str, models: Sequence[str], port: int) -> Iterator[str]:
    """The front, in a thread of this process; gives its URL.

    Args:
        grpc: host:port of Triton's gRPC.
        models: its text models.
        port: where the front listens; 0 picks a free one.

    Raises:
        UserError: the port is taken.
    """
    with bound(port, "--openai-port") as listener:
        app = application(TextModels(grpc, models))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
