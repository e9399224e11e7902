"""When a model is loaded again, and when it is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pipeline.ship import watch
from pipeline.ship.triton import checks
from pipeline.ship.web.model_states import ModelStates
from pipeline.types import Failed
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
    server, states, failures = FakeServer({TEXT: 1, "other_generate": 2}), ModelStates(), []

    models = list(server.processes)

    def run() -> None:
        try:
            watch.watch(server, models, states)
        except Failed as failure:
            failures.append(str(failure))

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: len(seen) == len(models))
    yield server, problems, states
    server.is_there = False
    thread.join(10)
    assert failures == ["the Triton server ended by itself: Signal (9)"]


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
