"""The inputs of one request: few at a time, and none that runs on."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.ship.openai_front.errors import Refusal
from pipeline.ship.openai_front.side_by_side import IN_FLIGHT, side_by_side
from tests.text_models import FakeModels


def test_leaving_the_events_cancels_them() -> None:
    models = FakeModels()

    async def leave() -> None:
        events = side_by_side(models, "base", [{"text_input": "a wait"}, {"text_input": "b wait"}])
        await anext(events)
        await events.aclose()
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert sorted(models.left) == ["a wait", "b wait"]


def test_few_inputs_of_a_request_are_in_the_model_at_a_time() -> None:
    models = FakeModels(request_timeout=0.2)

    async def ask() -> None:
        async for _ in side_by_side(models, "base", [{"text_input": "wait"}] * 20):
            pass

    with pytest.raises(Refusal, match=r"longer than 0\.2 s"):
        asyncio.run(ask())
    assert len(models.requests) == IN_FLIGHT


def test_the_first_refusal_ends_all() -> None:
    models = FakeModels()

    async def ask() -> None:
        async for _ in side_by_side(models, "base", [{"text_input": "a wait"}, {"text_input": "bad"}]):
            pass

    with pytest.raises(Refusal, match="the prompt is bad"):
        asyncio.run(ask())
    assert models.left == ["a wait"]
