"""Which models answer: requests end at once when theirs does not, from whichever thread it is told."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pipeline.ship.web.model_states import STOPPING, ModelStates, Outage


def ended(states: ModelStates, name: str | None, act, seconds: float | None = None) -> str | None:
    """How a request of this model ends, while another thread acts; None where nothing ends it."""

    thread = threading.Thread(target=act)

    async def request() -> str | None:
        try:
            async with states.attending(name, seconds):
                thread.start()
                await asyncio.sleep(0.5)
            return None
        except Outage as error:
            return str(error)

    outcome = asyncio.run(request())
    thread.join()
    return outcome


def test_a_request_ends_with_its_model_its_time_or_the_server() -> None:
    states = ModelStates()
    told: list[tuple[str, str | None]] = []
    states.observers.append(lambda reason, name: told.append((reason, name)))
    down = "m is being loaded again: gone"
    assert ended(states, "m", lambda: states.down("m", "gone")) == down
    assert ended(states, "other", lambda: states.down("m", "gone")) is None
    assert states.reason("m") == down and states.reason("other") is None is states.reason(None)
    states.up("m")
    assert ended(states, "m", lambda: None, seconds=0.05) == "the request was not done after 0.05 s"
    assert ended(states, None, states.stop) == STOPPING
    assert states.reason("other") == states.reason(None) == STOPPING
    assert told == [(down, "m")] * 2 + [(STOPPING, None)]
    assert not states._in_work


def test_a_request_of_a_model_that_is_down_is_refused_before_it_begins() -> None:
    states = ModelStates()
    states.down("m")

    async def request() -> None:
        async with states.attending("m"):
            raise AssertionError("it began")

    with pytest.raises(Outage, match="m is being loaded again: its process ended"):
        asyncio.run(request())


def test_other_time_limits_stay_their_own() -> None:
    async def request() -> None:
        async with ModelStates().attending("m", 60):
            raise TimeoutError("of the application")

    with pytest.raises(TimeoutError, match="of the application"):
        asyncio.run(request())


def test_what_is_told_after_the_end_harms_nothing() -> None:
    states = ModelStates()

    async def request() -> None:
        async with states.attending("m") as attendance:
            pass
        attendance.end("late")
        await asyncio.sleep(0.01)
        async with states.attending("m") as attendance:
            attendance.end("once")
            attendance.end("twice")
            await asyncio.sleep(1)

    with pytest.raises(Outage, match="once"):
        asyncio.run(request())
    assert not states._in_work
