"""Stage: a model repository → the real Triton server on this machine, checked and watched.

ONNX graphs run behind stand-ins for Triton's own backends. A plan is not executed here: the graph that it was
built from is.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pipeline import store
from pipeline.ship import watch
from pipeline.ship.fronts import LONGEST, Fronts
from pipeline.ship.ports import Ports, bound
from pipeline.ship.triton import checks, gate, http, install, page, repository, served, versions, wheel
from pipeline.ship.triton.checks import ServingCheck
from pipeline.ship.triton.served import ServedModel
from pipeline.ship.triton.server import Server
from pipeline.ship.web.guard import Access
from pipeline.ship.web.model_states import ModelStates
from pipeline.store.processes import stoppable
from pipeline.store.records import ShipRecord
from pipeline.types import Failed, Provider, UserError, first_line

log = logging.getLogger(__name__)


def smoke(folder: Path, provider: Provider = "cpu") -> list[ServingCheck]:
    """Starts the server on free ports, runs every check through the gate, stops it.

    Args:
        folder: a model repository that `pipeline ship` wrote.
        provider: of ONNX Runtime, that runs the graphs.

    Raises:
        UserError: no repository, a file in it is not what was shipped, or a model knows the CPU alone.
        Failed: the server did not become ready.
    """
    models = _verified(folder, provider)
    names = [model.name for model in models]
    results = []
    with Server(wheel.find(provider), folder, names, Ports(0, 0, 0)) as server:
        listener = bound(0, "--http-port")
        with gate.listening(server.http, names, listener, Access(), ModelStates(), LONGEST) as address:
            for check in _smoke_checks(folder, models, server, address):
                log.info("%s", check.line())
                results.append(check)
    return results


def _smoke_checks(
    folder: Path, models: list[ServedModel], server: Server, address: str
) -> Iterator[ServingCheck]:
    yield from checks.examine(folder, models, address, server.grpc, server.wheel.provider)
    model = models[-1].name
    body = {"text_input": "a", "max_tokens": -1}
    status, answer = http.post(f"{address}/v2/models/{model}/generate", body)
    is_refused = status >= 400 and "max_tokens" in str(answer)
    yield ServingCheck(model, "refuses max_tokens -1", is_refused, f"HTTP {status}")
    yield ServingCheck("server", "is healthy after all that", server.is_healthy())


def serve(
    folder: Path,
    ports: Ports,
    fronts: Fronts | None = None,
    log_file: Path | None = None,
    provider: Provider = "cpu",
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Ready means: healthy, every model READY, one inference of each as run directly. A text model whose process
    died, which Triton goes on calling ready, is noticed and loaded again; Triton is started again where it
    dies itself.

    Args:
        folder: a model repository that `pipeline ship` wrote.
        ports: where the gate listens (HTTP), and Triton itself (gRPC and metrics, on 127.0.0.1).
        fronts: what stands before the models; by default the gate alone, on 127.0.0.1.
        log_file: of the server's own output.
        provider: of ONNX Runtime, that runs the graphs.

    Raises:
        UserError: as `smoke`; or a port is taken.
        Failed: a check failed, or the server ended by itself too often.
    """
    models = _verified(folder, provider)
    names = [model.name for model in models]
    texts = [model.name for model in models if model.is_text]
    fronts, states = fronts or Fronts(), ModelStates()
    own_ports = replace(ports, http=0)
    try:
        with stoppable(), fronts.bound(ports) as sockets, ExitStack() as stack:
            environment = replace(wheel.find(provider), request_timeout=fronts.request_timeout)
            server = stack.enter_context(Server(environment, folder, names, own_ports, log_file))
            _require_checks(folder, models, server)
            with fronts.opened(server, names, sockets, states) as urls:
                _print_addresses(server, names, urls, fronts.access)
                watch.keep(server, texts, states)
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
    return "PIPELINE_PROVIDER" in code.read_text(encoding="utf-8")


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


def _print_addresses(server: Server, models: list[str], urls: list[str], access: Access) -> None:
    gate_url, *fronts = urls
    text = next(name for name in models if name.endswith(repository.ENDING))
    lines = [f"ready: {gate_url} (HTTP), {server.grpc} (gRPC), {server.metrics}"]
    lines += [f"  {gate_url}/v2/models/{name}" for name in models]
    lines += [f"  {url}/v1 (OpenAI)" for url in fronts]
    curl = page.curl(f"{gate_url}/v2/models/{text}", with_key=access.api_key is not None)
    print("\n".join([*lines, f"  {curl}"]), flush=True)
