"""The API's requests as fields of NAME_generate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.ship.openai_front.errors import Refusal
from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest, malformed


def test_a_completion() -> None:
    request = CompletionRequest(
        model="m", prompt=["a", "b"], echo=True, stop="x", seed=2**63, top_k=3, user="u"
    )
    common = {"seed": 2**63, "top_k": 3, "temperature": 1.0, "max_tokens": 16, "stop_words": ["x"]}
    common["exclude_input_in_output"] = False
    assert request.inputs() == [{"text_input": "a", **common}, {"text_input": "b", **common}]
    plain = CompletionRequest(model="m", prompt="a", temperature=0, max_tokens=0).inputs()
    assert plain == [{"text_input": "a", "temperature": 0.0, "max_tokens": 0}]  # 0 is the model's to refuse


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ({}, 256),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 0, "max_tokens": 5}, 0),
    ],
)
def test_a_chat(arguments: dict[str, int], limit: int) -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "time?"}]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    (fields,) = ChatRequest(model="m", messages=messages, **arguments).inputs()
    assert fields.pop("max_tokens") == limit and fields.pop("temperature") == 1.0
    assert json.loads(fields.pop("messages")) == [messages[0], {"role": "user", "content": "the time?"}]
    assert not fields


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"colour": "red"}, "colour"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1, "echo": True}, "logprobs"),
        ({"logprobs": 5, "max_tokens": 20_001}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),  # of chats
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"max_tokens": 65_537}, "max_tokens"),
        ({"max_tokens": 20_000, "n": 4}, "max_tokens"),
        ({"max_tokens": 2_000, "prompt": ["a"] * 33}, "max_tokens"),
    ],
)
def test_what_is_not_supported_is_refused(arguments: dict[str, Any], param: str) -> None:
    request = CompletionRequest(**{"model": "m", "prompt": "a", **arguments})
    with pytest.raises(Refusal) as caught:
        request.inputs()
    assert caught.value.status == 400 and caught.value.body["error"]["param"] == param


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_tokens": "5"},
        {"max_tokens": 5.5},
        {"max_tokens": True},
        {"temperature": "0.5"},
        {"temperature": float("nan")},
        {"top_p": float("inf")},
        {"stop": 5},
        {"stop": ["a", None]},
        {"ignore_eos": "false"},
        {"seed": -1},
        {"prompt": 5},
    ],
)
def test_values_of_another_type_are_refused(arguments: dict[str, Any]) -> None:
    """As the API does; FastAPI's error is 400 with the argument's name."""
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": "a", **arguments})
    assert caught.value.errors()[0]["loc"][0] == next(iter(arguments))


def test_whole_numbers_are_fractions_too() -> None:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "a", "temperature": 1, "top_p": 1})
    assert request.temperature == 1.0


def test_what_changes_nothing_is_taken() -> None:
    harmless = {"user": "u", "store": True, "n": 1, "logprobs": None, "tools": [], "stream_options": None}
    text = {"response_format": {"type": "text"}}
    assert len(CompletionRequest(model="m", prompt="a", **harmless, **text).inputs()) == 1


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 2**64}, {"stream": "yes"}, {"top_p": "much"}])
def test_wrong_types_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest(model="m", prompt="a", **arguments)


def test_choices_of_a_prompt_stand_side_by_side() -> None:
    request = CompletionRequest(model="m", prompt=["a", "b"], n=3, best_of=3, seed=2**64 - 2, max_tokens=1)
    inputs = request.inputs()
    assert [one["text_input"] for one in inputs] == ["a", "a", "a", "b", "b", "b"]
    assert [one["seed"] for one in inputs] == [2**64 - 2, 2**64 - 1, 0] * 2
    assert "seed" not in CompletionRequest(model="m", prompt="a", n=2).inputs()[1]  # each its own draw
    assert [one["seed"] for one in ChatRequest(model="m", messages=CHAT, n=2, seed=5).inputs()] == [5, 6]


CHAT = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_alternatives_of_a_chat(arguments: dict[str, Any], count: int | None) -> None:
    (fields,) = ChatRequest(model="m", messages=CHAT, **arguments).inputs()
    assert fields.get("logprobs") == count


def test_alternatives_of_a_completion() -> None:
    assert CompletionRequest(model="m", prompt="a", logprobs=0).inputs()[0]["logprobs"] == 0
    assert "logprobs" not in CompletionRequest(model="m", prompt="a").inputs()[0]
    for arguments in ({}, {"logprobs": False}):
        with pytest.raises(Refusal, match="top_logprobs needs logprobs: true"):
            ChatRequest(model="m", messages=CHAT, top_logprobs=1, **arguments).inputs()


def test_the_caps_themselves_are_taken() -> None:
    assert len(CompletionRequest(model="m", prompt=["a"] * 64, n=8, max_tokens=128).inputs()) == 512
    assert len(ChatRequest(model="m", messages=CHAT, max_tokens=65_536).inputs()) == 1


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "the body: Invalid JSON"),
        (b"{", None, "the body: Invalid JSON"),
        (b"[]", None, "the body: Input should be an object"),
        (b'{"model": "m", "prompt": "\xff"}', None, "the body: Invalid JSON: invalid unicode"),
        (b'{"model": "m", "prompt": "\\ud800"}', None, "Invalid JSON: unexpected end of hex escape"),
        (b'{"model": "m", "prompt": "a", "stop": "\\udc00"}', None, "the body: Invalid JSON"),
        (b'{"model": "\\ud83d x", "prompt": "a"}', None, "the body: Invalid JSON"),
        (b'{"model": "m", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", None, "number out of range"),
        (b'{"model": "m", "prompt": "a", "x": ' + b"[" * 100_000, None, "recursion limit exceeded"),
        (b'{"model": "m", "prompt": "a", "top_p": NaN}', "top_p", "finite number"),
        (b'{"model": "m", "prompt": "a", "temperature": 1e999}', "temperature", "finite number"),
        (b'{"model": "m", "prompt": [1, 2]}', "prompt", "prompt: token ids are not supported here; send"),
        (b'{"model": "m", "prompt": [[1, 2]]}', "prompt", "token ids are not supported"),
        (b'{"model": "m", "prompt": "a", "n": 9}', "n", "n: Input should be less than or equal to 8"),
        (b'{"model": "m", "prompt": "a", "n": 0}', "n", "greater than or equal to 1"),
        (b'{"model": "m", "prompt": "a", "stop": 5}', "stop", "string, or Input should be a valid array"),
        (b'{"model": "m"}', "prompt", "prompt: Field required"),
    ],
)  # fmt: skip
def test_bodies_of_another_form(body: bytes, param: str | None, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate_json(body)
    error = malformed(caught.value).body["error"]
    assert error["param"] == param and message in error["message"] and len(error["message"]) < 200
