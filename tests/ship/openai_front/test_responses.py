"""Answers in the API's forms, from text models without a server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from pipeline.ship.openai_front.errors import Refusal
from pipeline.ship.openai_front.requests import ChatRequest, CompletionRequest
from pipeline.ship.openai_front.responses import EventStream, answer
from tests.text_models import FakeModels

USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


class Connection:
    def __init__(self, disconnects: bool = False) -> None:
        self.disconnects = disconnects

    async def receive(self) -> dict[str, str]:
        if not self.disconnects:
            await asyncio.sleep(600)
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}


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
    chunks = run(ChatRequest(model="base", messages=[{"role": "user", "content": "x y"}], stream=True))
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
    for stream, prompts in ((False, ["a b c wait", "d wait"]), (True, ["wait", "wait for"])):
        models = FakeModels()
        request = CompletionRequest(model="base", prompt=prompts, stream=stream)
        with pytest.raises(ClientDisconnect):
            run(request, models, Connection(disconnects=True))
        assert sorted(models.left) == prompts and not models.running


def test_choices_are_listed_by_prompt_and_its_prompt_counts_once() -> None:
    request = CompletionRequest(model="base", prompt=["a b", "c"], n=2)
    response = run(request)
    assert [(choice["index"], choice["text"]) for choice in response["choices"]] == [
        (0, "AB"), (1, "AB"), (2, "C"), (3, "C")
    ]  # fmt: skip
    usage = {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert response["usage"] == usage
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = run(request.model_copy(update={**options, "stream_options": Options}))
    assert chunks[-1]["usage"] == usage
    assert {chunk["choices"][0]["index"] for chunk in chunks[:-1]} == {0, 1, 2, 3}


class Options:
    include_usage = True


def test_a_request_whose_time_is_over_ends_with_an_error() -> None:
    """Whole: 503. Streamed: an event within the body, and its end. Either way nothing runs on."""
    models = FakeModels(request_timeout=0.2)
    with pytest.raises(Refusal, match=r"longer than 0\.2 s") as caught:
        run(CompletionRequest(model="base", prompt="a wait"), models)
    assert caught.value.status == 503 and caught.value.response().headers["retry-after"] == "5"
    assert stream_of(models, "a wait") == ["A", "the request took longer than 0.2 s", "[DONE]"]
    assert models.left == ["a wait"] * 2 and not models.running


def stream_of(models: FakeModels, prompt: str, interfere: Any = lambda: None) -> list[str]:
    """Texts and errors of a stream, and its end; after the first event something else may happen."""

    async def ask() -> list[str]:
        request = CompletionRequest(model="base", prompt=prompt, stream=True)
        response = await answer(models, request, Connection())
        lines = list[str]()
        async for line in response.body_iterator:
            assert line.startswith("data: ") and line.endswith("\n\n")
            event = {} if "[DONE]" in line else json.loads(line[6:])
            text = event["choices"][0]["text"] if "choices" in event else "[DONE]"
            lines.append(event["error"]["message"] if "error" in event else text)
            if len(lines) == 1:
                interfere()
        await asyncio.sleep(0)
        return lines

    return asyncio.run(ask())


def test_streams_end_with_an_error_and_done() -> None:
    models = FakeModels()
    assert stream_of(models, "a wait", models.states.stop) == ["A", "the server is being stopped", "[DONE]"]
    assert models.left == ["a wait"]
    models = FakeModels()
    died = ["A", "base_generate is being loaded again: it died", "[DONE]"]
    assert stream_of(models, "a wait", lambda: models.states.down("base_generate", "it died")) == died
    with pytest.raises(Refusal, match="is being loaded again: it died") as caught:  # until it is there again
        run(CompletionRequest(model="base", prompt="a"), models)
    assert caught.value.status == 503 and run(CompletionRequest(model="attn2-3", prompt="a"), models)
    models.states.up("base_generate")
    assert run(CompletionRequest(model="base", prompt="a"), models)
    bug = ["A", "an unexpected error; the server's log has it", "[DONE]"]
    assert stream_of(FakeModels(), "a bug") == bug


def test_a_client_that_does_not_read_is_left() -> None:
    async def endless() -> Any:
        while True:
            yield "data: x\n\n"

    async def send(_: Any) -> None:
        await asyncio.sleep(600)

    async def receive() -> Any:
        await asyncio.sleep(600)

    async def run() -> None:
        stream = EventStream(endless(), 0.1)
        await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    asyncio.run(run())


def test_log_probabilities_stand_in_every_answer_that_wants_them() -> None:
    chat = [{"role": "user", "content": "x y"}]
    for stream in (False, True):
        plain = run(CompletionRequest(model="base", prompt="a b", stream=stream))
        answer = run(CompletionRequest(model="base", prompt=["a b", "c"], logprobs=0, stream=stream))
        chatted = run(ChatRequest(model="base", messages=chat, logprobs=True, stream=stream))
        choices = [one for part in _listed(answer) for one in part["choices"]]
        offsets = {0: list[int](), 1: list[int]()}
        for choice in choices:
            offsets[choice["index"]] += choice["logprobs"]["text_offset"]
            assert len(choice["logprobs"]["tokens"]) == (1 if stream else len(choice["text"]))
        assert offsets == {0: [0, 1], 1: [0]}
        content = [t for part in _listed(chatted) for t in part["choices"][0]["logprobs"]["content"]]
        assert [one["token"] for one in content][-1].endswith('Y"}]')
        assert all(one["choices"][0]["logprobs"] is None for one in _listed(plain))


def _listed(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]


def test_the_inputs_of_a_request_are_of_one_share() -> None:
    models = FakeModels()
    ids = [run(CompletionRequest(model="base", prompt=["a", "b"], n=2), models)["id"] for _ in range(2)]
    assert [one["share"] for one in models.requests] == [ids[0]] * 4 + [ids[1]] * 4
