"""Messages of the API as a chat template takes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.ship.openai_front.errors import Refusal
from pipeline.ship.openai_front.messages import rendered


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "be brief"}, {"role": "system", "content": "be brief"}),
        ({"role": "user", "content": "x", "name": "Ann"}, {"role": "user", "content": "x"}),
        ({"role": "assistant", "content": None, "refusal": None}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "tool_calls": [{"id": "1"}]},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        ),
        (
            {"role": "tool", "content": "5", "name": "clock", "tool_call_id": "1"},
            {"role": "tool", "content": "5", "name": "clock", "tool_call_id": "1"},
        ),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "time?"}],
            },
            {"role": "user", "content": "the time?"},
        ),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "pirate", "content": "a"}, {"role": "pirate", "content": "a"}),  # the model refuses it
    ],
)
def test_a_message(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert json.loads(rendered([message])) == [expected]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "a"}, "messages[1] has no role"),
        ({"role": ["user"], "content": "a"}, "messages[1] has no role"),
        ({"role": "user", "content": None}, "messages[1] has no content"),
        ({"role": "system"}, "messages[1] has no content"),
        ({"role": "user", "content": 5}, "neither text nor a list of parts"),
        ({"role": "user", "content": {"type": "text"}}, "neither text nor a list of parts"),
        ({"role": "user", "content": ["text"]}, "a part of the type 'None'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of the type 'image_url'"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "type 'refusal'"),
        ({"role": "user", "content": [{"type": "text"}]}, "a text part whose text is missing"),
        ({"role": "user", "content": "a", "x": float("nan")}, "a number that is none in JSON"),
    ],
)
def test_what_is_no_text_is_refused_by_name(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        rendered([{"role": "user", "content": "a"}, message])
    error = caught.value.body["error"]
    assert caught.value.status == 400 and error["param"] == "messages" and reason in error["message"]


def test_no_message_is_refused() -> None:
    with pytest.raises(Refusal, match="messages is an empty list"):
        rendered([])
