"""OpenAI's own client, the front, and the real Triton server behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from pipeline.ship import openai_front
from pipeline.ship.ports import bound
from tests.serving import BASE, CUT, NARROW, PROMPTS, Served, until

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture
def client(healthy: Served) -> Iterator[openai.OpenAI]:
    models = [f"{name}_generate" for name in (BASE, CUT, NARROW)]
    with (
        openai_front.listening(healthy.server.grpc, models, bound(0, "--openai-port")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


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
    streams[0].close()
    until(lambda: len(streams) == 3)
    for stream in streams:
        stream.close()
    until(lambda: healthy.metric("pipeline_running_requests", NARROW) == 0)
