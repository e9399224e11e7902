"""When a model is loaded again, and when it is left alone."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.ship import watch
from pipeline.ship.ports import Ports
from pipeline.ship.triton import checks, http, repository, ship
from pipeline.ship.triton.server import Server
from pipeline.ship.web.model_states import ModelStates
from pipeline.types import Failed
from tests import serving
from tests.serving import until

TEXT = "m_generate"


@dataclass
class FakeServer:
    """A server whose models have processes; loading one gives it the next process.

    Attributes:
        ready: models that Triton calls ready.
        failing: loads that fail before one succeeds.
    """

    processes: dict[str, int]
    ready: set[str] = field(default_factory=lambda: {TEXT, "other_generate"})
    failing: int = 0
    reloaded: list[str] = field(default_factory=list)
    is_there: bool = True
    http: str = "http://here"
    metrics: str = "http://here/metrics"

    def is_running(self) -> bool:
        return self.is_there

    def reason(self) -> str:
        return "Signal (9)"

    def is_ready(self, model: str) -> bool:
        return model in self.ready

    def stub(self, model: str) -> int | None:
        return self.processes.get(model)

    def is_stub(self, process: int, model: str) -> bool:
        return self.processes.get(model) == process

    def reload(self, model: str) -> None:
        self.reloaded.append(model)
        if self.failing:
            self.failing -= 1
            raise Failed(f"{model} was not loaded again: timed out")
        self.processes[model] = 100 + len(self.reloaded)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch):
    """(models) → a server whose models are watched, their problems, and their states."""
    for name in ("EVERY", "GLANCE", "AGAIN"):
        monkeypatch.setattr(watch, name, 0.01)
    problems: dict[str, Callable[[], str | None]] = {}
    seen: set[str] = set()

    def problem(url: str, model: str, metrics: str) -> str | None:
        seen.add(model)
        return problems.get(model, lambda: None)()

    monkeypatch.setattr(checks, "problem", problem)
    server, states, ends = FakeServer({TEXT: 1, "other_generate": 2}), ModelStates(), list[str]()
    models = list(server.processes)
    thread = threading.Thread(target=lambda: ends.append(watch.watch(server, models, states)))
    thread.start()
    until(lambda: len(seen) == len(models))
    yield server, problems, states
    server.is_there = False
    thread.join(10)
    assert ends == ["Signal (9)"]


def test_a_process_that_is_gone_is_loaded_again_at_once_and_alone(watched) -> None:
    server, _, states = watched
    outages: list[str] = []
    states.observers.append(lambda reason, _: outages.append(reason))
    del server.processes[TEXT]
    until(lambda: outages and states.reason(TEXT) is None)
    assert server.reloaded == [TEXT] and outages == [f"{TEXT} is being loaded again: its process ended"]


def test_a_load_that_fails_is_tried_again(watched) -> None:
    server, problems, states = watched
    server.failing = 2
    problems[TEXT] = lambda: None if len(server.reloaded) == 3 else "HTTP 400: not healthy"
    until(lambda: len(server.reloaded) == 3 and states.reason(TEXT) is None)
    assert server.reloaded == [TEXT] * 3


def test_one_silence_is_no_death(watched) -> None:
    """Triton calls a process unhealthy that got no CPU for a second."""
    server, problems, _ = watched
    asked: list[int] = []

    def every_other() -> str | None:
        asked.append(1)
        return "HTTP 400: not healthy" if len(asked) % 2 else None

    problems[TEXT] = every_other
    until(lambda: len(asked) > 10)
    assert server.reloaded == []


def test_a_model_that_its_user_loads_again_is_left_alone(watched) -> None:
    server, problems, _ = watched
    asked: list[int] = []
    problems[TEXT] = lambda: asked.append(1)
    server.processes[TEXT] = 77
    server.ready.discard("other_generate")  # unloaded: what is not ready is asked, as ever
    del server.processes["other_generate"]
    until(lambda: len(asked) > 5)
    assert server.reloaded == []


def test_a_model_that_takes_long_to_load_holds_up_no_other(watched) -> None:
    server, _, _ = watched
    goes_on, load = threading.Event(), server.reload

    def reload(model: str) -> None:
        if model == TEXT:
            goes_on.wait(10)
        load(model)

    server.reload = reload
    del server.processes[TEXT], server.processes["other_generate"]
    until(lambda: server.reloaded == ["other_generate"])
    goes_on.set()
    until(lambda: server.reloaded == ["other_generate", TEXT])


def test_a_watch_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_watch_one", lambda *_: None)
    with pytest.raises(Failed, match="the watch of m_generate ended"):
        watch.watch(FakeServer({TEXT: 1}), [TEXT], ModelStates())


def test_a_server_that_ends_is_started_again_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its models are down until it is back; the sixth end within ten minutes is an error."""
    server, states, told = FakeServer({TEXT: 1}), ModelStates(), list[str | None]()
    monkeypatch.setattr(watch, "watch", lambda *_: server.reason())
    server.restart = lambda: told.append(states.reason(TEXT))
    with pytest.raises(Failed, match=r"ended by itself 6 times within 10 minutes: Signal \(9\)"):
        watch.keep(server, [TEXT], states)
    assert told == [f"{TEXT} is being loaded again: the server ended"] * 5
    assert caplog.messages.count("the Triton server ended by itself (Signal (9)); starting it again") == 5
    monkeypatch.setattr(watch, "WITHIN", 0.0)  # so many ends in a longer time are none too many
    told.clear()
    server.restart = lambda: told.append(None) if len(told) < 20 else pytest.exit("enough")
    with pytest.raises(pytest.exit.Exception):
        watch.keep(server, [TEXT], states)


def test_no_watch_outlives_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next server has watches of its own; these are told, and need not find out by a question."""
    monkeypatch.setattr(watch, "GLANCE", 0.01)
    monkeypatch.setattr(checks, "problem", lambda *_: None)
    server = FakeServer({TEXT: 1})
    looks = iter([True] * 9)
    server.is_running = lambda: next(looks, False)
    assert watch.watch(server, [TEXT], ModelStates()) == "Signal (9)"
    assert TEXT not in [thread.name for thread in threading.enumerate()]


FULL = {"text_input": "the time", "max_tokens": 1500, "ignore_eos": True}


def hold_full(server: Server, model: str, seconds: float) -> tuple[list[str], int, float]:
    """More clients than rows and queue hold, then as many that one more waits, and is not refused.

    Returns:
        The texts, how often the queue was full, and the longest time in which no text of the model ended.
    """
    until, texts, refused, ends = time.monotonic() + seconds, list[str](), list[Any](), [time.monotonic()]

    def client(number: int) -> None:
        while time.monotonic() < until - (seconds / 2 if number > 4 else 0):
            status, answer = http.post(f"{server.http}/v2/models/{model}/generate", FULL)
            if status == 200 and "text_output" in answer:
                texts.append(answer["text_output"])
                ends.append(time.monotonic())
            else:
                refused.append(answer["error"])
                time.sleep(0.1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    assert all("the queue is full" in reason for reason in refused), refused[:3]
    return texts, len(refused), max(b - a for a, b in itertools.pairwise(ends))


@pytest.mark.triton
@pytest.mark.slow
def test_a_full_queue_is_no_death(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token would wait longer than the watch does. `python -m tests.ship.test_watch`: two minutes."""
    monkeypatch.setattr(watch, "EVERY", 0.3)
    monkeypatch.setattr(checks, "PATIENCE", 0.5)
    held_full(workdir, 12)


def held_full(root: Path, seconds: float) -> None:
    repo, name = (root / "engines/triton").resolve(), "full_generate"
    settings = ship.settings_of(rows=2, cache_tokens=4096, queue=4)
    record = ship.ship(serving.project(root, ("base",)), repo, name="full", settings=settings).record
    version = repository.newest(record)["full"][1]
    environment = serving.triton()
    with (
        Server(environment, repo, [name], Ports(0, 0, 0)) as server,
        checks.open_graph(repo, version) as runner,
    ):
        prompts, process = Prompts.load(repo / name / "1"), server.stub(name)
        sampling = Sampling(max_tokens=FULL["max_tokens"], ignore_eos=True)
        expected = checks.direct(runner, prompts, FULL["text_input"], sampling)
        states, outages = ModelStates(), list[str]()
        states.observers.append(lambda reason, _: outages.append(reason))

        thread = threading.Thread(target=watch.watch, args=(server, [name], states), daemon=True)
        thread.start()
        texts, refused, longest = hold_full(server, name, seconds)
        assert set(texts) == {expected} and len(texts) > 2 and refused
        assert server.stub(name) == process and outages == []
        print(f"{seconds:g} s: {len(texts)} texts, {refused} refused, {longest:.1f} s between two at most")
    thread.join(10)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, serving.within(Path(folder)):
        held_full(Path(folder), 120)
