"""The messages of a chat, in the API's forms, as a chat template takes them."""

from __future__ import annotations

import json
from typing import Any

from pipeline.ship.openai_front.errors import Refusal, bad

ROLES = {"developer": "system"}
"""A role of the API → what templates call it. OpenAI's newer models call the system `developer`."""


def rendered(messages: list[dict[str, Any]]) -> str:
    """The messages as JSON text: contents are text, keys that say nothing (null) are left out.

    Raises:
        Refusal: there is none, a content is no text, or a value is no JSON.
    """
    if not messages:
        raise bad("messages is an empty list", "messages")
    try:
        return json.dumps([_message(number, one) for number, one in enumerate(messages)], allow_nan=False)
    except (ValueError, RecursionError):
        raise bad("messages holds a number that is none in JSON, or is nested too deep", "messages") from None


def _message(number: int, message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise _refusal(number, "has no role")
    fields = {key: value for key, value in message.items() if value is not None}
    if role != "tool":
        fields.pop("name", None)  # no template here knows it
    content = message.get("content")
    if content is None and role != "assistant":
        raise _refusal(number, "has no content")
    return {**fields, "role": ROLES.get(role, role), "content": _text(number, content)}


def _text(number: int, content: Any) -> str:
    """A content's text: itself, its text parts joined, or '' for null (an assistant that called a tool)."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise _refusal(number, "has a content that is neither text nor a list of parts")
    return "".join(_part(number, part) for part in content)


def _part(number: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise _refusal(number, f"has a part of the type {str(kind)[:50]!r}; only 'text' is supported here")
    if not isinstance(part.get("text"), str):
        raise _refusal(number, "has a text part whose text is missing")
    return str(part["text"])


def _refusal(number: int, reason: str) -> Refusal:
    return bad(f"messages[{number}] {reason}", "messages")
