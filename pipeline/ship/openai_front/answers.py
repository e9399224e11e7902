"""Answers in the API's own forms: whole, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import StreamingResponse

from pipeline.ship.openai_front.asked import Asked, Refusal
from pipeline.ship.openai_front.pieces import Piece, Triton


class Writer:
    """One answer in the API's own forms, whole or streamed; several prompts run side by side."""

    def __init__(
        self,
        triton: Triton,
        asked: Asked,
        prefix: Literal["cmpl", "chatcmpl"],
        request: Request,
        echoed: list[str] | None = None,
    ) -> None:
        self.triton, self.asked, self.request, self.echoed = triton, asked, request, echoed
        self.model = triton.model(asked.model)
        self.chat = prefix == "chatcmpl"
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    async def answer(self, requests: list[dict[str, Any]]) -> Any:
        """The response to these requests of NAME_generate, one a choice."""
        if not self.asked.stream:
            wholes = await asyncio.gather(*(self._whole(number, one) for number, one in enumerate(requests)))
            choices = [
                self._choice(number, text, finish) for number, (text, finish, _, _) in enumerate(wholes)
            ]
            kind = "chat.completion" if self.chat else "text_completion"
            usage = _usage(sum(w[2] for w in wholes), sum(w[3] for w in wholes))
            return {**self.head, "object": kind, "choices": choices, "usage": usage}
        events = self._events(requests)
        first = await anext(events)  # what is wrong with the request becomes an HTTP error, not an event
        return StreamingResponse(_server_sent(first, events), media_type="text/event-stream")

    async def _whole(self, number: int, fields: dict[str, Any]) -> tuple[str, str, int, int]:
        text, finish, asked, written = self._echo(number), "", 0, 0
        async for piece in self.triton.pieces(self.model, fields):
            text, finish, asked, written = (
                text + piece.text,
                piece.finish,
                piece.prompt_tokens,
                written + piece.tokens,
            )
            if await self.request.is_disconnected():
                break
        return text, finish, asked, written

    def _echo(self, number: int) -> str:
        return self.echoed[number] if self.echoed else ""

    def _choice(self, number: int, text: str, finish: str | None) -> dict[str, Any]:
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        return {"index": number, **said, "finish_reason": finish or None, "logprobs": None}

    async def _events(self, requests: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of every choice as they come, then the usage where it is wanted."""
        came: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

        async def run(number: int, fields: dict[str, Any]) -> None:
            try:
                async for piece in self.triton.pieces(self.model, fields):
                    await came.put((number, piece))
                await came.put((number, None))
            except Exception as error:  # told to the client as the API does
                await came.put((number, error))

        tasks = [asyncio.create_task(run(number, one)) for number, one in enumerate(requests)]
        left, begun, asked, written = len(tasks), set[int](), dict[int, int](), 0
        try:
            while left:
                number, piece = await came.get()
                if isinstance(piece, Exception):
                    raise piece
                if piece is None:
                    left -= 1
                    continue
                text = piece.text if number in begun else self._echo(number) + piece.text
                asked[number], written = piece.prompt_tokens, written + piece.tokens
                yield self._chunk(number, text, piece.finish or None, number not in begun)
                begun.add(number)
        finally:
            for task in tasks:
                task.cancel()
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            yield {
                **self._chunk(0, "", None, False),
                "choices": [],
                "usage": _usage(sum(asked.values()), written),
            }

    def _chunk(self, number: int, text: str, finish: str | None, is_first: bool) -> dict[str, Any]:
        if not self.chat:
            return {**self.head, "object": "text_completion", "choices": [self._choice(number, text, finish)]}
        delta = {"role": "assistant", "content": text} if is_first else {"content": text}
        choice = {"index": number, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}


def _usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


async def _server_sent(first: dict[str, Any], events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    yield f"data: {json.dumps(first)}\n\n"
    try:
        async for event in events:
            yield f"data: {json.dumps(event)}\n\n"
    except Refusal as error:
        yield f"data: {json.dumps(error.body)}\n\n"
    yield "data: [DONE]\n\n"
