"""Answers in the API's own forms: whole, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from pipeline.ship.openai_front.events import TextEvent, TextModels
from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest, Refusal


async def answer(models: TextModels, request: CompletionRequest | ChatRequest, connection: Request) -> Any:
    """The response to a request: one choice for each of its inputs, written side by side."""
    models.described(request.model)
    events, form = side_by_side(models, request.model, request.inputs()), AnswerForms(request)
    if request.stream:
        chunks = form.chunks(events)
        first = await anext(chunks)  # what is wrong with the request becomes an HTTP error, not an event
        return StreamingResponse(_server_sent(first, chunks), media_type="text/event-stream")
    choices: dict[int, list[TextEvent]] = {}
    async for number, event in events:
        choices.setdefault(number, []).append(event)
        if await connection.is_disconnected():
            break
    await events.aclose()
    return form.whole([choices[number] for number in sorted(choices)])


async def side_by_side(
    models: TextModels, name: str, inputs: list[dict[str, Any]]
) -> AsyncGenerator[tuple[int, TextEvent]]:
    """(number of the input, event), as they come. Closing it cancels what still runs.

    Raises:
        Refusal: what the model says of the first input that it refuses.
    """
    arrivals: asyncio.Queue[tuple[int, TextEvent | Exception | None]] = asyncio.Queue()

    async def run(number: int, fields: dict[str, Any]) -> None:
        try:
            async for event in models.events(name, fields):
                await arrivals.put((number, event))
            await arrivals.put((number, None))
        except Exception as error:  # noqa: BLE001 - raised again below, where the client gets it
            await arrivals.put((number, error))

    tasks = [asyncio.create_task(run(number, fields)) for number, fields in enumerate(inputs)]
    running = len(tasks)
    try:
        while running:
            number, event = await arrivals.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield number, event
    finally:
        for task in tasks:
            task.cancel()


class AnswerForms:
    """Events of text → the API's objects."""

    def __init__(self, request: CompletionRequest | ChatRequest) -> None:
        self.is_chat = isinstance(request, ChatRequest)
        self.with_usage = bool(request.stream_options and request.stream_options.include_usage)
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        self.head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self, choices: list[list[TextEvent]]) -> dict[str, Any]:
        """The whole answer, from the events of each choice."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        prompt, written = sum(c[-1].prompt_tokens for c in choices), sum(e.tokens for c in choices for e in c)
        texts = ["".join(event.text for event in events) for events in choices]
        bodies = [{"message": _message(text)} if self.is_chat else {"text": text} for text in texts]
        finishes = [events[-1].finish for events in choices]
        listed = [_choice(k, *one) for k, one in enumerate(zip(bodies, finishes, strict=True))]
        return {**self.head, "object": kind, "choices": listed, "usage": _usage(prompt, written)}

    async def chunks(self, events: AsyncIterator[tuple[int, TextEvent]]) -> AsyncIterator[dict[str, Any]]:
        """A chunk for each event, then the usage where it is wanted."""
        prompt, written = dict[int, int](), 0
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        async for number, event in events:
            delta = {"content": event.text} if number in prompt else _message(event.text)
            body: dict[str, Any] = {"delta": delta} if self.is_chat else {"text": event.text}
            prompt[number], written = event.prompt_tokens, written + event.tokens
            yield {**self.head, "object": kind, "choices": [_choice(number, body, event.finish)]}
        if self.with_usage:
            usage = _usage(sum(prompt.values()), written)
            yield {**self.head, "object": kind, "choices": [], "usage": usage}


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _choice(number: int, body: dict[str, Any], finish: str) -> dict[str, Any]:
    return {"index": number, **body, "finish_reason": finish or None, "logprobs": None}


def _usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


async def _server_sent(first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    yield f"data: {json.dumps(first)}\n\n"
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except Refusal as error:
        yield f"data: {json.dumps(error.body)}\n\n"
    yield "data: [DONE]\n\n"
