from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.runtime.generation.prompts import Prompts
from pipeline.ship.ports import Ports
from pipeline.ship.triton import checks, repository, ship
from pipeline.ship.triton.served import models
from pipeline.ship.triton.server import Server
from tests import serving, triton_backend
from tests.serving import BASE, CUT, NARROW, Served

triton_backend.install()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Base and a variant side by side, and the variant once more with one row and a queue of two.

    The folder's name holds a space and a letter that is not ASCII.
    """
    wheel = serving.triton()
    folder = tmp_path_factory.mktemp("triton") / "my projects é"
    folder.mkdir()
    with serving.within(folder):
        graphs = serving.project(Path.cwd())
        repo = Path("engines/triton").resolve()
        ship.ship(graphs, repo)
        settings = ship.settings_of(rows=1, cache_tokens=16_384, queue=2)
        record = ship.ship(graphs[1:], repo, name=NARROW, settings=settings).record
        runners = {
            name: checks.open_graph(repo, version) for name, (_, version) in repository.newest(record).items()
        }
        prompts = Prompts.load(repo / f"{BASE}_generate" / "1")
        server = Server(wheel, repo, [model.name for model in models(repo, record)], Ports(0, 0, 0))
        all_tests = Served(server, repo, runners, prompts)
        with ExitStack() as stack:
            stack.callback(lambda: all_tests.server.stop())  # the one that runs then
            server.__enter__()
            yield all_tests


@pytest.fixture
def healthy(served: Served) -> Iterator[Served]:
    """After the test the server is healthy, every text model answers, and nothing runs on.

    A server that died fails the test in which it did, with its log, and is started anew for the next one.
    """
    yield served
    if (death := served.death()) is not None:
        served.restart()
        pytest.fail(death)
    assert served.server.is_healthy()
    for model in (BASE, CUT, NARROW):
        assert checks.problem(served.server.http, f"{model}_generate") is None
