"""The inputs of one request, written side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from pipeline.ship.openai_front.errors import Refusal, unexpected
from pipeline.ship.openai_front.events import TextEvent, TextModels

IN_FLIGHT = 8
"""Inputs of one request that are in the model at a time: many prompts leave room for other clients."""

Arrivals = asyncio.Queue[tuple[int, TextEvent | Refusal | None]]
"""(number of the input; its event, what ended it, or None after the last)."""


async def side_by_side(
    models: TextModels, name: str, inputs: list[dict[str, Any]]
) -> AsyncGenerator[tuple[int, TextEvent]]:
    """(number of the input, event), as they come. Closing it cancels what still runs.

    Raises:
        Refusal: what the model says of the first input that it refuses; the request's time is over; or the
            server stops.
    """
    arrivals, turns, tasks = Arrivals(), asyncio.Semaphore(IN_FLIGHT), list[asyncio.Task[None]]()

    async def run(number: int, fields: dict[str, Any]) -> None:
        async with turns:
            await _write(models.events(name, fields), number, arrivals)

    def end(refusal: Refusal) -> None:
        for task in tasks:
            task.cancel()
        arrivals.put_nowait((0, refusal))

    with models.limited(name, end):
        tasks += [asyncio.create_task(run(number, fields)) for number, fields in enumerate(inputs)]
        running = len(tasks)
        try:
            while running:
                number, event = await arrivals.get()
                if isinstance(event, Refusal):
                    raise event
                if event is None:
                    running -= 1
                else:
                    yield number, event
        finally:
            for task in tasks:
                task.cancel()


async def _write(events: AsyncIterator[TextEvent], number: int, arrivals: Arrivals) -> None:
    """Puts the events of one input there, then None, or what ended them."""
    try:
        async for event in events:
            arrivals.put_nowait((number, event))
        arrivals.put_nowait((number, None))
    except Refusal as refusal:
        arrivals.put_nowait((number, refusal))
    except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
        arrivals.put_nowait((number, unexpected(error)))
