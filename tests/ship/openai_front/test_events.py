"""Responses of Triton as events, and its errors as the API's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.ship.openai_front.events import TextEvent, TextModels
from pipeline.ship.openai_front.requests import Refusal


class Responses:
    """What stream_infer gives."""

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items, self.cancelled = iter(items), False

    def __aiter__(self) -> Responses:
        return self

    async def __anext__(self) -> tuple[Any, Any]:
        try:
            return next(self.items)
        except StopIteration:
            raise StopAsyncIteration from None

    def cancel(self) -> None:
        self.cancelled = True


def response(text: str | None, finish: str = "", is_last: bool = False) -> tuple[Any, None]:
    values = {"text_output": text, "finish_reason": finish, "num_input_tokens": 3, "num_output_tokens": 1}

    def as_numpy(name: str) -> Any:
        value = None if text is None else values[name]
        item = value.encode() if isinstance(value, str) else value
        return None if item is None else np.array([[item]], np.object_)

    last = SimpleNamespace(parameters={"triton_final_response": SimpleNamespace(bool_param=is_last)})
    return SimpleNamespace(as_numpy=as_numpy, get_response=lambda: last), None


def events(responses: Responses, fields: dict[str, Any], limit: int = 9) -> tuple[list[TextEvent], list[Any]]:
    """The events, `limit` of them at most, and the requests that were sent."""
    requests: list[Any] = []

    async def run() -> list[TextEvent]:
        models = TextModels("nowhere:1", ["m_generate"])

        def stream_infer(iterator: Any) -> Responses:
            requests.append(iterator)
            return responses

        models.client = SimpleNamespace(stream_infer=stream_infer)
        received = []
        stream = models.events("m", fields)
        async for event in stream:
            received.append(event)
            if len(received) == limit:
                break
        await stream.aclose()
        requests[:] = [request for iterator in requests async for request in iterator]
        return received

    return asyncio.run(run()), requests


def test_events_until_the_last_response() -> None:
    responses = Responses([response("a"), response("b", "length"), response(None, is_last=True)])
    received, (request,) = events(responses, {"text_input": "x", "max_tokens": 2})
    assert received == [TextEvent("a", "", 3, 1), TextEvent("b", "length", 3, 1)]
    assert request["model_name"] == "m_generate" and responses.cancelled
    names = {tensor.name() for tensor in request["inputs"]}
    flags = {"return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"}
    assert names == {"text_input", "max_tokens", "stream", *flags}


def test_leaving_cancels_the_request() -> None:
    responses = Responses([response("a"), response("b")])
    received, _ = events(responses, {"text_input": "x"}, limit=1)
    assert len(received) == 1 and responses.cancelled


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("the queue is full: 2 requests wait", 503, "overloaded"),
        ("the prompt has 9 tokens; together the context holds 4", 400, "context_length_exceeded"),
        ("Stub process 'x' is not healthy", 503, None),
        ("model is being unloaded", 503, None),
        ("the text could not be written: the model is being unloaded", 503, None),
        ("the text could not be written: the model's logits are not finite", 500, None),
        ("top_p 0 is not above 0", 400, None),
    ],
)
def test_errors_of_triton(message: str, status: int, code: str | None) -> None:
    error = SimpleNamespace(message=lambda: message)
    with pytest.raises(Refusal) as caught:
        events(Responses([(None, error)]), {"text_input": "x"})
    body = caught.value.body["error"]
    assert (caught.value.status, body["code"], body["message"]) == (status, code, message)


def test_a_number_out_of_range_is_refused() -> None:
    with pytest.raises(Refusal, match="out of range"):
        events(Responses([]), {"text_input": "x", "max_tokens": 1 << 40})


def test_unknown_models() -> None:
    models = TextModels("nowhere:1", ["m_generate"])
    assert models.described("m")["id"] == "m"
    with pytest.raises(Refusal, match="The model 'm_generate' does not exist") as caught:
        models.described("m_generate")
    assert caught.value.status == 404
