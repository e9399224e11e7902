"""What clients send, in the API's words, and the errors that they get."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

SAMPLING = {
    "top_p", "seed", "presence_penalty", "frequency_penalty",
    "top_k", "repetition_penalty", "ignore_eos",
}  # fmt: skip
"""Arguments that NAME_generate takes under the same name; the second line is not OpenAI's but vLLM's."""
HARMLESS = {
    "user", "metadata", "store", "service_tier",
    "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
}  # fmt: skip
"""Arguments of the API that change nothing here."""


class Refusal(Exception):
    """An error as the API has it."""

    def __init__(self, status: int, message: str, kind: str, **details: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": None, **details}}


def bad(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """The error for a request that is wrong."""
    return Refusal(400, message, "invalid_request_error", param=param, code=code)


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool = False


class TextArguments(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 64)
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    n: int | None = None

    def fields(self, max_tokens: int) -> dict[str, Any]:
        """The sampling fields of NAME_generate. The API's default temperature is 1.

        Raises:
            Refusal: an argument is not supported here.
        """
        if self.n not in (None, 1):
            raise bad("n must be 1: one choice a prompt is written here", "n")
        for name, value in (self.model_extra or {}).items():
            if name not in HARMLESS and value not in (None, False, [], {}, {"type": "text"}):
                raise bad(f"the argument {name!r} is not supported here", name)
        fields = self.model_dump(include=SAMPLING, exclude_none=True)
        fields["temperature"] = 1.0 if self.temperature is None else self.temperature
        fields["max_tokens"] = max_tokens
        if self.stop:
            fields["stop_words"] = [self.stop] if isinstance(self.stop, str) else self.stop
        return fields


class CompletionRequest(TextArguments):
    """Body of /v1/completions."""

    prompt: str | list[str]
    echo: bool | None = None

    def inputs(self) -> list[dict[str, Any]]:
        """A request to NAME_generate for each prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not prompts:
            raise bad("prompt is an empty list", "prompt")
        fields = self.fields(16 if self.max_tokens is None else self.max_tokens)
        echo = {"exclude_input_in_output": False} if self.echo else {}
        return [{"text_input": prompt, **fields, **echo} for prompt in prompts]


class ChatRequest(TextArguments):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None

    def inputs(self) -> list[dict[str, Any]]:
        """The one request to NAME_generate. The cache keeps room for the limit; where none is named: 256."""
        limits = [limit for limit in (self.max_completion_tokens, self.max_tokens, 256) if limit is not None]
        messages = [{**message, "content": _text_of(message.get("content"))} for message in self.messages]
        return [{"messages": json.dumps(messages), **self.fields(limits[0])}]


def _text_of(content: Any) -> str:
    """The content of a message, or its text parts joined; other parts are refused."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
        raise bad("the content of a message must be text", "messages")
    return "".join(str(part.get("text", "")) for part in parts)
