"""Answers in the API's own forms: whole, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from pipeline.ship.openai_front.errors import Refusal, unexpected
from pipeline.ship.openai_front.events import TextEvent, TextModels
from pipeline.ship.openai_front.logprobs import CompletionLogprobs, of_chat
from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest
from pipeline.ship.openai_front.side_by_side import side_by_side

log = logging.getLogger(__name__)

READING = 30.0
"""Seconds beyond a request's time in which a client must have read its stream."""
Work = TypeVar("Work")


async def answer(models: TextModels, request: CompletionRequest | ChatRequest, connection: Request) -> Any:
    """The response to a request: the choices of each of its prompts, written side by side."""
    models.described(request.model)
    form = AnswerForms(request)
    # Those of one request take turns with other requests as if they were one.
    inputs = [{**fields, "share": form.head["id"]} for fields in request.inputs()]
    events = side_by_side(models, request.model, inputs)
    if request.stream:
        chunks = form.chunks(events)
        # What is wrong with the request becomes an HTTP error, not an event.
        first = await _while_connected(connection, anext(chunks))
        return EventStream(_server_sent(first, chunks), models.request_timeout + READING)
    try:
        return await _while_connected(connection, form.whole(events))
    finally:
        await events.aclose()


async def _while_connected(connection: Request, work: Awaitable[Work]) -> Work:
    """The result of the work, which is cancelled where the client hangs up.

    Raises:
        ClientDisconnect: it did.
        Refusal: of the work.
    """

    async def hang_up() -> None:
        while (await connection.receive())["type"] != "http.disconnect":
            pass

    job, gone = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    finally:
        job.cancel()
        gone.cancel()
        await asyncio.wait({job, gone})


class EventStream(StreamingResponse):
    """Server-sent events. A client that does not read them is left.

    Args:
        events: as text.
        seconds: in which all must have been read.
    """

    def __init__(self, events: AsyncIterator[str], seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        try:
            async with asyncio.timeout(self.seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning(
                "a client did not read its stream within %g s; its connection is closed", self.seconds
            )


class AnswerForms:
    """Events of text → the API's objects."""

    def __init__(self, request: CompletionRequest | ChatRequest) -> None:
        self.is_chat, self.choices = isinstance(request, ChatRequest), request.choices
        self.has_logprobs = request.alternatives() is not None
        self.lists = defaultdict[int, CompletionLogprobs](CompletionLogprobs)
        self.with_usage = bool(request.stream_options and request.stream_options.include_usage)
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        self.head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }

    async def whole(self, events: AsyncIterator[tuple[int, TextEvent]]) -> dict[str, Any]:
        """The whole answer."""
        received: dict[int, list[TextEvent]] = {}
        async for number, event in events:
            received.setdefault(number, []).append(event)
        choices = [received[number] for number in sorted(received)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        prompt = sum(events[-1].prompt_tokens for events in choices[:: self.choices])
        written = sum(event.tokens for events in choices for event in events)
        texts = ["".join(event.text for event in events) for events in choices]
        bodies = [{"message": _message(text)} if self.is_chat else {"text": text} for text in texts]
        finishes = [events[-1].finish for events in choices]
        logprobs = (self._logprobs(k, choice) for k, choice in enumerate(choices))
        listed = [_choice(k, *one) for k, one in enumerate(zip(bodies, finishes, logprobs, strict=True))]
        return {**self.head, "object": kind, "choices": listed, "usage": _usage(prompt, written)}

    async def chunks(self, events: AsyncIterator[tuple[int, TextEvent]]) -> AsyncGenerator[dict[str, Any]]:
        """A chunk for each event, then the usage where it is wanted."""
        prompt, written = dict[int, int](), 0
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        async for number, event in events:
            delta = {"content": event.text} if number in prompt else _message(event.text)
            body: dict[str, Any] = {"delta": delta} if self.is_chat else {"text": event.text}
            prompt[number], written = event.prompt_tokens, written + event.tokens
            choice = _choice(number, body, event.finish, self._logprobs(number, [event]))
            yield {**self.head, "object": kind, "choices": [choice]}
        if self.with_usage:
            once = sum(tokens for number, tokens in prompt.items() if number % self.choices == 0)
            yield {**self.head, "object": kind, "choices": [], "usage": _usage(once, written)}

    def _logprobs(self, number: int, events: list[TextEvent]) -> dict[str, Any] | None:
        """Of the next events of a choice; None where none are wanted."""
        if not self.has_logprobs:
            return None
        tokens = [token for event in events for token in event.logprobs]
        return of_chat(tokens) if self.is_chat else self.lists[number].of(tokens)


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _choice(
    number: int, body: dict[str, Any], finish: str, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": number, **body, "finish_reason": finish or None, "logprobs": logprobs}


def _usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


async def _server_sent(first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[str]:
    """The events of a stream; an error is one too, and [DONE] is the last whatever happens."""
    yield f"data: {json.dumps(first)}\n\n"
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except Refusal as refusal:
        yield f"data: {json.dumps(refusal.body)}\n\n"
    except Exception as error:  # noqa: BLE001 - the status is out, so that the event alone can tell it
        yield f"data: {json.dumps(unexpected(error).body)}\n\n"
    yield "data: [DONE]\n\n"
