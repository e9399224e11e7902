"""Text models without a server: each prompt is answered word by word with itself in capitals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pipeline.ship.openai_front.errors import bad
from pipeline.ship.openai_front.events import TextEvent, TextModels


class FakeModels(TextModels):
    """Keeps the fields of each request, and which requests were left before their end."""

    def __init__(self, request_timeout: float = 300) -> None:
        super().__init__("nowhere:1", ["base_generate", "attn2-3_generate"], request_timeout)
        self.requests: list[dict[str, Any]] = []
        self.left: list[str] = []

    async def events(self, name: str, fields: dict[str, Any]) -> AsyncIterator[TextEvent]:
        self.requests.append(fields)
        prompt = fields.get("text_input") or fields["messages"]
        if prompt == "bad":
            raise bad("the prompt is bad")
        words = prompt.upper().split()
        is_echoed = not fields.get("exclude_input_in_output", True)
        try:
            for number, word in enumerate(words):
                await asyncio.sleep(0)
                if word == "WAIT":
                    await asyncio.sleep(60)
                if word == "BREAK":
                    raise bad("it broke")
                if word == "BUG":
                    raise ZeroDivisionError("a bug")
                text = (prompt + ": " if is_echoed and not number else "") + word
                token = {"token": word, "logprob": -1.0, "bytes": list(word.encode()), "top": []}
                tokens = (token,) if "logprobs" in fields else ()
                yield TextEvent(text, "length" if word is words[-1] else "", len(words), 1, tokens)
            prompt = ""
        finally:
            self.left += [prompt] if prompt else []
