"""Responses of Triton as events, and its errors as the API's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from pipeline.ship.openai_front.errors import Refusal
from pipeline.ship.openai_front.events import TextEvent, TextModels
from pipeline.ship.triton.model_config import REQUEST
from pipeline.ship.web.model_states import STOPPING


class Responses:
    """What stream_infer gives."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.cancelled = iter(items), False

    def __aiter__(self) -> Responses:
        return self

    async def __anext__(self) -> tuple[Any, Any]:
        item = next(self.items, None)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


def response(
    text: str | None, finish: str = "", is_last: bool = False, logprobs: str | None = None
) -> tuple[Any, None]:
    values = {
        "text_output": text,
        "finish_reason": finish,
        "num_input_tokens": 3,
        "num_output_tokens": 1,
        "logprobs": logprobs,
    }

    def as_numpy(name: str) -> Any:
        value = None if text is None else values[name]
        item = value.encode() if isinstance(value, str) else value
        return None if item is None else np.array([[item]], np.object_)

    last = SimpleNamespace(parameters={"triton_final_response": SimpleNamespace(bool_param=is_last)})
    return SimpleNamespace(as_numpy=as_numpy, get_response=lambda: last), None


def events(
    responses: Responses, fields: dict[str, Any], limit: int = 9, known: Iterable[str] = REQUEST
) -> tuple[list[TextEvent], list[Any]]:
    """The events, `limit` of them at most, and the requests to a model of the known fields."""
    requests: list[Any] = []

    async def run() -> list[TextEvent]:
        models = TextModels("nowhere:1", ["m_generate"])

        def stream_infer(iterator: Any, headers: dict[str, str] | None = None) -> Responses:
            assert headers is None  # triton_grpc_error kills Triton 24.10
            requests.append(iterator)
            return responses

        async def get_model_metadata(_: str) -> Any:
            return SimpleNamespace(inputs=[SimpleNamespace(name=name) for name in known])

        models.client = SimpleNamespace(stream_infer=stream_infer, get_model_metadata=get_model_metadata)
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
    assert names == {"text_input", "max_tokens", "stream", "return_error_status", *flags}


def test_leaving_cancels_the_request() -> None:
    responses = Responses([response("a"), response("b")])
    received, _ = events(responses, {"text_input": "x"}, limit=1)
    assert len(received) == 1 and responses.cancelled


class RpcError(grpc.RpcError):
    """What gRPC raises where a stream ends with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = lambda: code, lambda: details


def refused(error: Any, known: Iterable[str] = REQUEST) -> tuple[int, Any, Any, str]:
    """Status, code, argument and words of the refusal that the front makes of an error."""
    with pytest.raises(Refusal) as caught:
        events(Responses([error]), {"text_input": "x"}, known=known)
    told = caught.value.body["error"]
    return caught.value.status, told["code"], told["param"], told["message"]


def said(message: str) -> tuple[None, Any]:
    """An error within a stream: words alone."""
    return None, SimpleNamespace(message=lambda: message)


def test_an_error_of_the_stream_is_judged_by_its_status() -> None:
    full = "the queue is full: 2 requests wait"
    assert refused(RpcError(grpc.StatusCode.UNAVAILABLE, full)) == (503, "overloaded", None, full)
    assert refused(said(f"UNAVAILABLE: {full}")) == (503, "overloaded", None, full)
    assert refused(said("INVALID_ARGUMENT: top_p: 0")) == (400, None, None, "top_p: 0")


def test_what_triton_says_itself_is_never_the_clients_fault() -> None:
    """Its errors before the model come without a status, such as for a model that is being loaded."""
    message = "Request for unknown model: 'm' has no available versions"
    assert refused(said(message)) == (503, None, None, message)


def test_errors_of_a_model_that_an_earlier_version_shipped() -> None:
    """It does not name the status, and is not asked to."""
    assert refused(said("top_p 0 is not above 0"), known=("text_input",))[:3] == (400, None, "top_p")
    assert refused(said("the model is being unloaded"), known=("text_input",))[0] == 503


def test_an_answer_without_an_end_is_an_error() -> None:
    with pytest.raises(Refusal, match="broke off"):
        events(Responses([response("a")]), {"text_input": "x"})


def test_requests_of_a_model_are_ended_from_another_thread() -> None:
    models = TextModels("nowhere:1", ["m_generate", "n_generate"])
    ended = list[tuple[str, str]]()

    async def run() -> None:
        with (
            models.limited("m", lambda error: ended.append(("m", str(error)))),
            models.limited("n", lambda error: ended.append(("n", str(error)))),
        ):
            await asyncio.to_thread(models.states.down, "n_generate", "it died")
            await asyncio.sleep(0)
            assert ended == [("n", "n_generate is being loaded again: it died")]
            await asyncio.to_thread(models.states.stop)
            await asyncio.sleep(0)
        with pytest.raises(Refusal, match="the server is being stopped"), models.limited("m", print):
            pass

    asyncio.run(run())
    assert sorted(ended[1:]) == [("m", STOPPING), ("n", STOPPING)] and not models.running


def test_fields_that_an_earlier_version_lacks() -> None:
    """What changes no text is left out; what would change the answer is refused by name."""
    old = Responses([response("a", "stop", is_last=True)]), {"text_input": "x", "share": "s", "probe": True}
    _, (request,) = events(*old, known=("text_input", "stream"))
    assert "text_input" in {tensor.name() for tensor in request["inputs"]}
    assert not {"share", "probe"} & {tensor.name() for tensor in request["inputs"]}
    with pytest.raises(Refusal, match="logprobs: an earlier version shipped this model") as caught:
        events(Responses([]), {"text_input": "x", "logprobs": 2}, known=("text_input",))
    assert caught.value.status == 400


def test_log_probabilities_arrive() -> None:
    tokens = [{"token": "a", "logprob": -0.5, "bytes": [97], "top": []}]
    received, _ = events(Responses([response("a", "stop", True, json.dumps(tokens))]), {"text_input": "x"})
    assert received == [TextEvent("a", "stop", 3, 1, tuple(tokens))]


def test_a_number_out_of_range_is_refused() -> None:
    with pytest.raises(Refusal, match="out of range"):
        events(Responses([]), {"text_input": "x", "max_tokens": 1 << 40})


def test_unknown_models() -> None:
    models = TextModels("nowhere:1", ["m_generate"])
    assert models.described("m")["id"] == "m"
    with pytest.raises(Refusal, match="The model 'm_generate' does not exist") as caught:
        models.described("m_generate")
    assert caught.value.status == 404
