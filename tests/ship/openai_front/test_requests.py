"""The API's requests as fields of NAME_generate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest, Refusal, bad


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
        ({"n": 2}, "n"),
        ({"logprobs": 2}, "logprobs"),
        ({"colour": "red"}, "colour"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": []}, "prompt"),
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


@pytest.mark.parametrize("content", [None, 5, [{"type": "image_url"}], ["text"]])
def test_a_message_that_is_no_text_is_refused(content: Any) -> None:
    request = ChatRequest(model="m", messages=[{"role": "user", "content": content}])
    with pytest.raises(Refusal, match="the content of a message must be text"):
        request.inputs()


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 2**64}, {"stream": "yes"}, {"top_p": "much"}])
def test_wrong_types_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest(model="m", prompt="a", **arguments)


def test_the_form_of_an_error() -> None:
    error = {"message": "m", "type": "invalid_request_error", "param": "p", "code": None}
    assert bad("m", "p").body == {"error": error}
