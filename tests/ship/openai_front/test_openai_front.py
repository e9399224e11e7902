"""OpenAI's own client, the front, and the real Triton server behind it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from pipeline.runtime.generation import alone
from pipeline.runtime.generation.sampling import Sampling
from pipeline.ship import openai_front
from pipeline.ship.ports import bound
from pipeline.ship.web.model_states import ModelStates
from tests.serving import BASE, CUT, NARROW, PROMPTS, Served, until
from tests.ship.openai_front import client_checks

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture
def states() -> ModelStates:
    return ModelStates()


@pytest.fixture
def client(healthy: Served, states: ModelStates) -> Iterator[openai.OpenAI]:
    models = [f"{name}_generate" for name in (BASE, CUT, NARROW)]
    with (
        openai_front.listening(
            healthy.server.grpc, models, bound(0, "--openai-port"), states=states, request_timeout=60
        ) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("what", client_checks.CHECKS)
def test_openais_own_client(client: openai.OpenAI, what: str) -> None:
    for model in (BASE, CUT):
        assert client_checks.failure(what, client, model) is None


def test_log_probabilities_are_those_of_the_graph(healthy: Served, client: openai.OpenAI) -> None:
    """Of drawn tokens, before temperature and penalties: log-softmax in float64 of the graph run directly."""
    arguments: Any = {"model": CUT, "prompt": PROMPTS[1], "max_tokens": 10, "seed": 3, "temperature": 0.7}
    answer = client.completions.create(**arguments, logprobs=5, extra_body={"repetition_penalty": 1.5})
    sampling = Sampling(10, temperature=0.7, seed=3, repetition_penalty=1.5, logprobs=5)
    ids, runner = healthy.prompts.encode(PROMPTS[1]), healthy.runners[CUT]
    pieces = alone.pieces(runner, healthy.prompts, ids, sampling)
    assert answer.choices[0].text == "".join(piece.text for piece in pieces)
    lists, tokens = answer.choices[0].logprobs, [piece.token for piece in pieces]
    for token, value, top in zip(tokens, lists.token_logprobs, lists.top_logprobs, strict=True):
        logits, _ = runner.forward(np.array([ids], np.int64))
        scores = logits[0, -1].astype(np.float64)
        truth = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
        assert value == pytest.approx(truth[token], abs=1e-4)
        likeliest = sorted(top.values(), reverse=True)[:5]
        assert likeliest == pytest.approx(np.sort(truth)[::-1][:5], abs=1e-4)
        ids = [*ids, token]


def test_openai_completions(healthy: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [BASE, CUT, NARROW]
    assert client.models.retrieve(CUT).id == CUT
    whole = healthy.direct(BASE, PROMPTS[0], max_tokens=12)
    answer = client.completions.create(model=BASE, prompt=PROMPTS[0], max_tokens=12, temperature=0)
    assert answer.choices[0].text == whole and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        len(healthy.prompts.encode(PROMPTS[0])),
        12,
    )
    both = client.completions.create(model=BASE, prompt=PROMPTS[:2], max_tokens=4, temperature=0, echo=True)
    assert [choice.text for choice in both.choices] == [
        p + healthy.direct(BASE, p, max_tokens=4) for p in PROMPTS[:2]
    ]
    events = list(
        client.completions.create(model=BASE, prompt=PROMPTS[0], max_tokens=12, temperature=0, stream=True)
    )
    assert (
        "".join(event.choices[0].text for event in events) == whole
        and events[-1].choices[0].finish_reason == "length"
    )
    stop = whole[4:7]
    cut = client.completions.create(model=BASE, prompt=PROMPTS[0], max_tokens=12, temperature=0, stop=stop)
    assert cut.choices[0].text == whole[: whole.find(stop)] and cut.choices[0].finish_reason == "stop"
    drawn = [
        client.completions.create(model=BASE, prompt="a", max_tokens=12, seed=5).choices[0].text
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] == healthy.direct(BASE, "a", max_tokens=12, seed=5, temperature=1)


def test_openai_chat(healthy: Served, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "the time?"}]}]
    expected = healthy.direct(
        CUT, healthy.prompts.render([{"role": "user", "content": "the time?"}]), max_tokens=10
    )
    answer = client.chat.completions.create(
        model=CUT, messages=messages, max_completion_tokens=10, temperature=0
    )
    assert answer.choices[0].message.content == expected and answer.usage.completion_tokens == 10
    events = list(
        client.chat.completions.create(
            model=CUT,
            messages=messages,
            max_tokens=10,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(event.choices[0].delta.content for event in events[:-1]) == expected
    assert (
        events[0].choices[0].delta.role == "assistant"
        and events[-1].usage == answer.usage
        and not events[-1].choices
    )


@pytest.mark.parametrize(
    ("arguments", "error", "status", "code", "message"),
    [
        (
            {"model": "gpt-9"},
            openai.NotFoundError,
            404,
            "model_not_found",
            "The model 'gpt-9' does not exist",
        ),
        ({"max_tokens": -1}, openai.BadRequestError, 400, None, "max_tokens -1"),
        ({"max_tokens": 1 << 40}, openai.BadRequestError, 400, None, "one request may ask for 65,536"),
        (
            {"max_tokens": 5000},
            openai.BadRequestError,
            400,
            "context_length_exceeded",
            "the context holds 4096",
        ),
        ({"n": 9}, openai.BadRequestError, 400, None, "n: Input should be less than or equal to 8"),
        ({"stop": [""]}, openai.BadRequestError, 400, None, "a stop string is empty"),
        ({"prompt": [5]}, openai.BadRequestError, 400, None, "token ids are not supported"),
        ({"prompt": ""}, openai.BadRequestError, 400, None, "the prompt is empty"),
        ({"prompt": []}, openai.BadRequestError, 400, None, "prompt is an empty list"),
        ({"temperature": "hot"}, openai.BadRequestError, 400, None, "temperature"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, 400, None, "'colour' is not supported"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_openai_errors(
    client: openai.OpenAI, arguments: Any, error: Any, status: int, code: Any, message: str, stream: bool
) -> None:
    """As HTTP errors in the API's form, also where a stream was asked for."""
    with pytest.raises(error) as caught:
        list(client.completions.create(**{"model": BASE, "prompt": "a", "stream": stream, **arguments}))
    assert caught.value.status_code == status and caught.value.code == code and message in str(caught.value)


def test_openai_overload_and_hang_up(healthy: Served, client: openai.OpenAI) -> None:
    """A full queue is a 503; streams that the client leaves are cancelled in the model."""
    streams = []
    for _ in range(3):
        body: Any = {
            "model": NARROW,
            "prompt": "the time",
            "max_tokens": 4000,
            "stream": True,
            "extra_body": {"ignore_eos": True},
        }
        if not streams:
            streams.append(client.completions.create(**body))
            next(iter(streams[0]))
        else:
            threading.Thread(
                target=lambda body=body: streams.append(client.completions.create(**body)), daemon=True
            ).start()
    until(lambda: healthy.metric("pipeline_waiting_requests", NARROW) == 2)
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=NARROW, prompt="a")
    assert caught.value.status_code == 503 and caught.value.code == "overloaded"
    for number in range(3):  # each begins when the one before it is left
        until(lambda number=number: len(streams) > number)
        streams[number].close()
    until(lambda: healthy.metric("pipeline_running_requests", NARROW) == 0)


def test_a_model_that_died_is_503_and_its_streams_end(
    healthy: Served, client: openai.OpenAI, states: ModelStates
) -> None:
    """As the watch of `serve` tells it; then the model is loaded again."""
    healthy.despite_locks(lambda: _dies_and_is_loaded_again(healthy, client, states))


def _dies_and_is_loaded_again(healthy: Served, client: openai.OpenAI, states: ModelStates) -> None:
    name = f"{CUT}_generate"
    states.up(name)
    body = {"model": CUT, "stream": True, "prompt": "the time", "max_tokens": 4000, "ignore_eos": True}
    with httpx.stream("POST", f"{client.base_url}completions", json=body, timeout=60) as response:
        events = response.iter_lines()
        assert next(events).startswith("data: {")
        os.kill(healthy.server.stub(name), signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as caught:
            until(lambda: client.completions.create(model=CUT, prompt="a", max_tokens=1) is None)
        assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"] == "5"
        assert httpx.get(f"{client.base_url.copy_with(path='/health/ready')}", timeout=60).status_code == 503
        states.down(name, "its process ended")
        *_, error, end = [line.removeprefix("data: ") for line in events if line]
    assert end == "[DONE]" and json.loads(error)["error"]["type"] == "server_error"
    with pytest.raises(openai.InternalServerError, match="is being loaded again"):
        client.completions.create(model=CUT, prompt="a")
    healthy.server.reload(name)
    states.up(name)
    assert client.completions.create(model=CUT, prompt="a", max_tokens=1).choices


def test_the_end_of_the_front_ends_its_streams(healthy: Served) -> None:
    """With an error event and [DONE], and a whole body."""
    models = [f"{name}_generate" for name in (BASE, CUT, NARROW)]
    body = {"model": BASE, "stream": True, "prompt": "the time", "max_tokens": 4000, "ignore_eos": True}
    listening = openai_front.listening(healthy.server.grpc, models, bound(0, "--openai-port"))
    url = listening.__enter__()
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        events = response.iter_lines()
        assert next(events).startswith("data: {")
        ending = threading.Thread(target=listening.__exit__, args=(None, None, None))
        ending.start()
        *_, error, end = [line.removeprefix("data: ") for line in events if line]
    ending.join()
    assert end == "[DONE]" and "being stopped" in json.loads(error)["error"]["message"]
    until(lambda: healthy.metric("pipeline_running_requests", BASE) == 0)
