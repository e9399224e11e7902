"""Stage: a model repository → the real Triton server on this machine, checked, watched, and stopped without a trace.

ONNX graphs run on the CPU behind stand-ins for Triton's own backends; a plan is not executed here, the graph that it was built from is.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ship.triton import checks, repository, wheel
from pipeline.ship.triton.server import HOST, Ports, Server
from pipeline.types import Failed, UserError

if TYPE_CHECKING:
    from pipeline.ship.openai_front import Front

log = logging.getLogger(__name__)
WATCH = 5.0
"""Seconds between two looks at whether each text model still answers."""


def smoke(folder: Path) -> list[checks.Check]:
    """Starts the server on free ports, runs every check, stops it.

    Raises:
        UserError: no repository, or a file in it is not what was shipped.
        Failed: the server did not become ready.
    """
    manifest = _verified(folder)
    with Server(wheel.find(), folder, repository.served(manifest), Ports(0, 0, 0)) as server:
        found = []
        for check in checks.examine(folder, manifest, server.http, server.grpc):
            log.info("%s", check.line())
            found.append(check)
        url = f"{server.http}/v2/models/{found[-1].model}/generate"
        status, answer = checks.post(url, {"text_input": "a", "max_tokens": -1})
        refused = status >= 400 and "max_tokens" in str(answer)
        found.append(checks.Check(found[-1].model, "refuses max_tokens -1", refused, f"HTTP {status}"))
        found.append(checks.Check("server", "is healthy after all that", server.is_healthy()))
        for check in found[-2:]:
            log.info("%s", check.line())
    return found


def serve(folder: Path, ports: Ports, openai_port: int | None = None, log_file: Path | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM. Ready means: healthy, every model READY, one inference of each as run directly.

    A text model whose process died (Triton goes on calling it ready) is noticed and loaded again.

    Raises:
        UserError: no repository, a file in it is not what was shipped, or a port is taken.
        Failed: a check failed, or the server ended by itself.
    """
    manifest = _verified(folder)
    models = repository.served(manifest)
    with _until_stopped(), Server(wheel.find(), folder, models, ports, log_file) as server:
        failed = []
        for check in checks.examine(folder, manifest, server.http, server.grpc):
            log.info("%s", check.line())
            failed += [] if check.passed else [check]
        if failed:
            raise Failed(f"{len(failed)} checks failed; the first: {failed[0].line()}")
        texts = [name for name in models if name.endswith("_generate")]
        with _front(server, texts, openai_port) as front:
            _say_where(server, models, front)
            _watch(server, texts)


def _verified(folder: Path) -> dict[str, Any]:
    manifest = repository.read(folder)
    if not manifest["models"]:
        raise UserError(f"{folder} holds no model; ship one with `pipeline ship GRAPH --to triton {folder}`")
    repository.verify(folder, manifest)
    if any(told["plan"] for _, told in repository.newest(manifest).values()):
        log.info("plans are not executed here: the graphs that they were built from run on the CPU")
    return manifest


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Ends quietly on the first Ctrl-C or SIGTERM, wherever it comes; further ones do not disturb the stopping."""
    heard = False

    def hear(*_: object) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise KeyboardInterrupt

    had = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        for number, handler in had.items():
            signal.signal(number, handler)


@contextmanager
def _front(server: Server, texts: list[str], port: int | None) -> Iterator[Front | None]:
    """The OpenAI front where it is asked for."""
    if port is None:
        yield None
        return
    from pipeline.ship.openai_front import Front

    with Front(server.grpc, texts, HOST, port) as front:
        yield front


def _say_where(server: Server, models: list[str], front: Front | None) -> None:
    text = next(name for name in models if name.endswith("_generate"))
    lines = [f"ready: {server.http} (HTTP), {server.grpc} (gRPC), {server.metrics}"]
    lines += [f"  {server.http}/v2/models/{name}" for name in models]
    if front:
        lines.append(f"  {front.url}/v1 (OpenAI)")
    body = '{"text_input": "The capital of France is", "max_tokens": 16, "stream": true}'
    lines.append(f"  curl -N {server.http}/v2/models/{text}/generate_stream -d '{body}'")
    print("\n".join(lines), flush=True)


def _watch(server: Server, texts: list[str]) -> None:
    """For ever: a server that ended is an error, a text model that no longer answers is loaded again."""
    import tritonclient.http as client

    looked = time.monotonic()
    while True:
        time.sleep(0.2)
        if not server.is_running():
            raise Failed(f"the Triton server ended by itself: {server.reason()}")
        if time.monotonic() - looked < WATCH:
            continue
        for name in texts:
            if (problem := checks.answers(server.http, name)) is not None and server.is_running():
                log.warning("%s does not answer (%s); loading it again", name, problem)
                with client.InferenceServerClient(
                    server.http.removeprefix("http://"), network_timeout=120
                ) as triton:
                    triton.unload_model(name)
                    _until_gone(triton, name)
                    triton.load_model(name)
                log.warning("%s is loaded again", name)
        looked = time.monotonic()


def _until_gone(triton: Any, name: str, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while triton.is_model_ready(name) and time.monotonic() < until:
        time.sleep(0.1)
