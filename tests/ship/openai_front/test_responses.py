"""Answers in the API's forms, from text models without a server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest, Refusal
from pipeline.ship.openai_front.responses import answer, side_by_side
from tests.text_models import FakeModels

USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


class Connection:
    def __init__(self, disconnects: bool = False) -> None:
        self.disconnects = disconnects

    async def is_disconnected(self) -> bool:
        return self.disconnects


def run(request: Any, models: FakeModels | None = None, connection: Any = None) -> Any:
    """The answer; of a stream its events."""

    async def ask() -> Any:
        response = await answer(models or FakeModels(), request, connection or Connection())
        if not request.stream:
            return response
        return [
            json.loads(line[6:]) async for line in response.body_iterator if not line.endswith("[DONE]\n\n")
        ]

    return asyncio.run(ask())


def test_a_whole_completion_of_two_prompts() -> None:
    response = run(CompletionRequest(model="base", prompt=["a b", "c"], echo=True))
    assert response["object"] == "text_completion" and response["id"].startswith("cmpl-")
    assert [choice["text"] for choice in response["choices"]] == ["a b: AB", "c: C"]
    assert [choice["index"] for choice in response["choices"]] == [0, 1]
    assert {choice["finish_reason"] for choice in response["choices"]} == {"length"}
    assert response["usage"] == USAGE and response["model"] == "base"


def test_a_whole_chat() -> None:
    response = run(ChatRequest(model="base", messages=[{"role": "user", "content": "x"}]))
    (choice,) = response["choices"]
    assert response["object"] == "chat.completion" and response["id"].startswith("chatcmpl-")
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"].endswith('"X"}]')


def test_streams() -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = run(CompletionRequest(model="base", prompt=["a b", "c"], **options))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "AB", 1: "C"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("length") == 2
    assert last["choices"] == [] and last["usage"] == USAGE
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    chunks = run(ChatRequest(model="base", messages=[{"role": "u", "content": "x y"}], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant" and all("role" not in delta for delta in deltas[1:])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and "usage" not in chunks[-1]


def test_errors_before_and_within_a_stream() -> None:
    for stream in (False, True):
        with pytest.raises(Refusal, match="the prompt is bad"):
            run(CompletionRequest(model="base", prompt=["a", "bad"], stream=stream))
        with pytest.raises(Refusal, match="The model 'x' does not exist"):
            run(CompletionRequest(model="x", prompt="a", stream=stream))
    first, error = run(CompletionRequest(model="base", prompt="a break b", stream=True))
    assert first["choices"][0]["text"] == "A" and error["error"]["message"] == "it broke"


def test_a_client_that_hangs_up_cancels_all_its_requests() -> None:
    models = FakeModels()
    request = CompletionRequest(model="base", prompt=["a b c wait", "d wait"])
    response = run(request, models, Connection(disconnects=True))
    assert response["choices"] and sorted(models.left) == ["a b c wait", "d wait"]


def test_leaving_the_events_cancels_them() -> None:
    models = FakeModels()

    async def leave() -> None:
        events = side_by_side(models, "base", [{"text_input": "a wait"}, {"text_input": "b wait"}])
        await anext(events)
        await events.aclose()
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert sorted(models.left) == ["a wait", "b wait"]
