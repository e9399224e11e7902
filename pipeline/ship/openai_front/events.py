"""The text models of a Triton server over gRPC: fields in, events of text out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc.aio as client

from pipeline.ship.openai_front.requests import Refusal, bad
from pipeline.ship.triton import text_model
from pipeline.ship.triton.in_triton import FAILED
from pipeline.ship.triton.repository import ENDING

UNHEALTHY = ("unhealthy", "not healthy", "Stub process", "unloaded", "unavailable")
"""Words of Triton's errors for a model that is down or being loaded."""


@dataclass(frozen=True, slots=True)
class TextEvent:
    """One response of NAME_generate.

    Attributes:
        text: what is new.
        finish: why the text ends; '' where it goes on.
        prompt_tokens, tokens: tokens of the prompt, and of the new text.
    """

    text: str
    finish: str
    prompt_tokens: int
    tokens: int


class TextModels:
    """The text models, by the names that clients use.

    Args:
        address: host:port of Triton's gRPC.
        models: NAME_generate of each.
    """

    def __init__(self, address: str, models: Sequence[str]) -> None:
        self.address, self.models = address, {name.removesuffix(ENDING): name for name in models}
        self.born = int(time.time())
        self.client: Any = None

    def described(self, name: str) -> dict[str, Any]:
        """A model as /v1/models has it.

        Raises:
            Refusal: there is none of this name.
        """
        if name not in self.models:
            message = f"The model '{name}' does not exist"
            raise Refusal(404, message, "invalid_request_error", param="model", code="model_not_found")
        return {"id": name, "object": "model", "created": self.born, "owned_by": "skip-pipeline"}

    async def events(self, name: str, fields: dict[str, Any]) -> AsyncIterator[TextEvent]:
        """The responses to one request, as they come; leaving the loop cancels the request.

        Raises:
            Refusal: what the model says is wrong.
        """
        if self.client is None:
            self.client = client.InferenceServerClient(self.address)
        outputs = ("stream", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
        try:
            inputs = text_model.tensors({**fields, **dict.fromkeys(outputs, True)})
        except OverflowError as overflow:
            raise bad(f"a number is out of range: {overflow}") from None

        async def once() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": self.models[name], "inputs": inputs, "enable_empty_final_response": True}

        responses = self.client.stream_infer(once())
        try:
            async for result, error in responses:
                if error is not None:
                    raise _refusal(str(error.message()))
                if result.as_numpy("text_output") is not None:
                    yield _event(result)
                if text_model.is_last(result):
                    return
        finally:
            responses.cancel()


def _event(result: Any) -> TextEvent:
    names = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")
    text, finish, prompt_tokens, tokens = (result.as_numpy(name).reshape(-1)[0] for name in names)
    return TextEvent(text.decode(), finish.decode(), int(prompt_tokens), int(tokens))


def _refusal(message: str) -> Refusal:
    """Triton's error as the API has it: a wrong request is 400, what went wrong here is not."""
    if "queue is full" in message:
        return Refusal(503, message, "server_error", code="overloaded")
    if any(word in message for word in UNHEALTHY):
        return Refusal(503, message, "server_error")
    if FAILED in message:
        return Refusal(500, message, "server_error")
    if "context" in message and "tokens" in message:
        return bad(message, "messages", "context_length_exceeded")
    return bad(message)
