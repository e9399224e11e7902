"""What clients ask for, in the API's words, and the errors that they get."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
}
"""Arguments of the API that change nothing here."""


class Refusal(Exception):
    """An error as the API has it."""

    def __init__(
        self, status: int, message: str, kind: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    return Refusal(400, message, "invalid_request_error", param, code)


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool = False


class Asked(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow")

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
        """The sampling fields as NAME_generate takes them; the API draws at temperature 1 where none is named."""
        if self.n not in (None, 1):
            raise bad("n must be 1: one choice a prompt is written here", "n")
        for name, value in (self.model_extra or {}).items():
            if name not in HARMLESS and value not in (None, False, [], {}, {"type": "text"}):
                raise bad(f"the argument {name!r} is not supported here", name)
        named = (
            "top_p",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "top_k",
            "repetition_penalty",
            "ignore_eos",
        )
        asked = {name: value for name in named if (value := getattr(self, name)) is not None}
        asked["temperature"] = 1.0 if self.temperature is None else self.temperature
        asked["max_tokens"] = max_tokens
        if self.stop:
            asked["stop_words"] = [self.stop] if isinstance(self.stop, str) else self.stop
        return asked


class AskedCompletion(Asked):
    """Body of /v1/completions."""

    prompt: str | list[str]
    echo: bool | None = None


class AskedChat(Asked):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None

    def plain(self) -> list[dict[str, str]]:
        """The messages with their content as one text; parts of other kinds are refused."""
        return [{**message, "content": _text_of(message.get("content"))} for message in self.messages]


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    raise bad("the content of a message must be text", "messages")
