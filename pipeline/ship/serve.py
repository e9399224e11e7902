"""Stage: a model repository → the real Triton server on this machine, checked and watched.

ONNX graphs run behind stand-ins for Triton's own backends. A plan is not executed here: the graph that it was
built from is.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import store
from pipeline.ship import watch
from pipeline.ship.ports import Ports
from pipeline.ship.triton import checks, http, install, page, repository, served, versions, wheel
from pipeline.ship.triton.checks import ServingCheck
from pipeline.ship.triton.served import ServedModel
from pipeline.ship.triton.server import Server
from pipeline.store.processes import stoppable
from pipeline.store.records import ShipRecord
from pipeline.types import Failed, Provider, UserError, first_line

log = logging.getLogger(__name__)


def smoke(folder: Path, provider: Provider = "cpu") -> list[ServingCheck]:
    """Starts the server on free ports, runs every check, stops it.

    Args:
        folder: a model repository that `pipeline ship` wrote.
        provider: of ONNX Runtime, that runs the graphs.

    Raises:
        UserError: no repository, a file in it is not what was shipped, or a model knows the CPU alone.
        Failed: the server did not become ready.
    """
    models = _verified(folder, provider)
    names = [model.name for model in models]
    with Server(wheel.find(provider), folder, names, Ports(0, 0, 0)) as server:
        results = []
        for check in _smoke_checks(folder, models, server):
            log.info("%s", check.line())
            results.append(check)
    return results


def _smoke_checks(folder: Path, models: list[ServedModel], server: Server) -> Iterator[ServingCheck]:
    yield from checks.examine(folder, models, server.http, server.grpc, server.wheel.provider)
    model = models[-1].name
    body = {"text_input": "a", "max_tokens": -1}
    status, answer = http.post(f"{server.http}/v2/models/{model}/generate", body)
    is_refused = status >= 400 and "max_tokens" in str(answer)
    yield ServingCheck(model, "refuses max_tokens -1", is_refused, f"HTTP {status}")
    yield ServingCheck("server", "is healthy after all that", server.is_healthy())


def serve(
    folder: Path,
    ports: Ports,
    openai_port: int | None = None,
    log_file: Path | None = None,
    provider: Provider = "cpu",
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Ready means: healthy, every model READY, one inference of each as run directly. A text model whose process
    died, which Triton goes on calling ready, is noticed and loaded again.

    Args:
        folder: a model repository that `pipeline ship` wrote.
        ports: where the server listens.
        openai_port: where the OpenAI front listens; None for no front.
        log_file: of the server's own output.
        provider: of ONNX Runtime, that runs the graphs.

    Raises:
        UserError: as `smoke`; or a port is taken.
        Failed: a check failed, or the server ended by itself.
    """
    models = _verified(folder, provider)
    names = [model.name for model in models]
    texts = [model.name for model in models if model.is_text]
    try:
        with stoppable(), Server(wheel.find(provider), folder, names, ports, log_file) as server:
            _require_checks(folder, models, server)
            with _front(server, texts, openai_port) as front:
                _print_addresses(server, names, front)
                watch.watch(server, texts)
    except KeyboardInterrupt:
        log.info("stopped")


def _verified(folder: Path, provider: Provider) -> list[ServedModel]:
    """What the repository serves, once each byte of it is what was shipped."""
    record = repository.read(folder)
    if not record.models:
        target = shlex.quote(str(folder))
        raise UserError(f"{folder} holds no model; ship one with `pipeline ship GRAPH --to triton {target}`")
    if record.switching:
        record = _switched(folder)
    models = served.models(folder, record)
    repository.verify(folder, record, [model.version for model in models])
    for model in models:
        if provider != "cpu" and model.is_text and not _takes_provider(folder, model):
            raise UserError(
                f"{model.name} was shipped by a version whose text models run on the CPU here; ship it again "
                "into a new folder, or take --provider cpu"
            )
    if any(model.version.plan for model in models):
        place = "the CPU" if provider == "cpu" else "CUDA"
        log.info("plans are not executed here: the graphs that they were built from run on %s", place)
    return models


def _takes_provider(folder: Path, model: ServedModel) -> bool:
    """Whether the code that a text model carries reads what the server tells it."""
    code = folder / model.name / str(model.number) / "pipeline" / versions.IN_TRITON / "generate_model.py"
    return b"PIPELINE_PROVIDER" in store.records.read_bytes(code)


def _switched(folder: Path) -> ShipRecord:
    """The record, once the `ship` that runs has ended, or what a killed one left undone is done."""
    try:
        with store.lock(folder, make=False):
            return install.finish(folder, repository.read(folder))
    except OSError as error:
        raise UserError(
            f"{folder} is half switched to a new version by a killed `pipeline ship`, and cannot be written: "
            f"{first_line(error)}; run that `pipeline ship` again"
        ) from None


def _require_checks(folder: Path, models: list[ServedModel], server: Server) -> None:
    failures = []
    for check in checks.examine(folder, models, server.http, server.grpc, server.wheel.provider):
        log.info("%s", check.line())
        failures += [] if check.passed else [check]
    if failures:
        raise Failed(f"{len(failures)} checks failed; the first: {failures[0].line()}")


@contextmanager
def _front(server: Server, texts: list[str], port: int | None) -> Iterator[str | None]:
    """The URL of the OpenAI front; None where none is wanted."""
    if port is None:
        yield None
        return
    from pipeline.ship import openai_front

    with openai_front.listening(server.grpc, texts, port) as url:
        yield url


def _print_addresses(server: Server, models: list[str], front: str | None) -> None:
    text = next(name for name in models if name.endswith(repository.ENDING))
    lines = [f"ready: {server.http} (HTTP), {server.grpc} (gRPC), {server.metrics}"]
    lines += [f"  {server.http}/v2/models/{name}" for name in models]
    if front:
        lines.append(f"  {front}/v1 (OpenAI)")
    lines.append(f"  {page.curl(f'{server.http}/v2/models/{text}')}")
    print("\n".join(lines), flush=True)
