"""The text models of a Triton server over gRPC: fields in, events of text out."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import tritonclient.grpc.aio as client

from pipeline.ship.openai_front.errors import Refusal, bad, down, failed
from pipeline.ship.triton import text_model
from pipeline.ship.triton.in_triton import FAILED
from pipeline.ship.triton.repository import ENDING

STATUS = {"triton_grpc_error": "true"}
"""The header that makes Triton end a stream with gRPC's status of a model's error, not with its words alone.
https://github.com/triton-inference-server/server/blob/main/docs/customization_guide/inference_protocols.md"""
OUTPUTS = ("stream", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
REQUEST_TIMEOUT = 300.0
ARGUMENTS = {
    "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "ignore_eos", "logprobs",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
}  # fmt: skip
"""Arguments of the API that text models complain about by the same name."""

End = Callable[[Refusal], None]
"""Ends a request with an error."""


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
        request_timeout: seconds that a request may take, its wait included.
    """

    def __init__(self, address: str, models: Sequence[str], request_timeout: float = REQUEST_TIMEOUT) -> None:
        self.address, self.models = address, {name.removesuffix(ENDING): name for name in models}
        self.request_timeout, self.born = request_timeout, int(time.time())
        self.client: Any = None
        self.running: dict[End, str] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_stopping = False

    def described(self, name: str) -> dict[str, Any]:
        """A model as /v1/models has it.

        Raises:
            Refusal: there is none of this name.
        """
        if name not in self.models:
            message = f"The model '{name:.200}' does not exist"
            raise Refusal(404, message, "invalid_request_error", param="model", code="model_not_found")
        return {"id": name, "object": "model", "created": self.born, "owned_by": "skip-pipeline"}

    async def events(self, name: str, fields: dict[str, Any]) -> AsyncIterator[TextEvent]:
        """The responses to one request, as they come; leaving the loop cancels the request.

        Raises:
            Refusal: what the model says is wrong.
        """
        if self.client is None:
            self.client = client.InferenceServerClient(self.address)
        try:
            inputs = text_model.tensors({**fields, **dict.fromkeys(OUTPUTS, True)})
        except OverflowError as overflow:
            raise bad(f"a number is out of range: {overflow}") from None

        async def once() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": self.models[name], "inputs": inputs, "enable_empty_final_response": True}

        responses = self.client.stream_infer(once(), headers=STATUS)
        try:
            async for result, error in responses:
                if error is not None:
                    raise down(str(error.message()))  # of Triton itself: the model is not there
                if result.as_numpy("text_output") is not None:
                    yield _event(result)
                if text_model.is_last(result):
                    return
            raise down("the model's answer broke off")
        except grpc.RpcError as error:
            raise refusal(error.code(), str(error.details())) from None
        finally:
            responses.cancel()

    @contextmanager
    def limited(self, name: str, end: End) -> Iterator[None]:
        """Within it, `end` is called once the request's time is over, or by `end_all`.

        Raises:
            Refusal: no request is taken any more.
        """
        if self.is_stopping:
            raise down("the server is stopping")
        self.loop = asyncio.get_running_loop()
        late = down(f"the request took longer than {self.request_timeout:g} s", "timeout")
        timer = self.loop.call_later(self.request_timeout, end, late)
        self.running[end] = name
        try:
            yield
        finally:
            timer.cancel()
            del self.running[end]

    def stop(self) -> None:
        """Ends every request with an error, and takes no other. Any thread may call it."""
        self.is_stopping = True
        self.end_all("the server is stopping")

    def end_all(self, reason: str, model: str | None = None) -> None:
        """Ends the requests that run, of one model (NAME_generate) or of all. Any thread may call it."""

        def end() -> None:
            for one, name in list(self.running.items()):
                if model in (None, self.models[name]):
                    one(down(reason))

        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(end)

    async def close(self) -> None:
        """Closes the connection to Triton."""
        if self.client is not None:
            await self.client.close()


def _event(result: Any) -> TextEvent:
    names = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")
    text, finish, prompt_tokens, tokens = (result.as_numpy(name).reshape(-1)[0] for name in names)
    return TextEvent(text.decode(), finish.decode(), int(prompt_tokens), int(tokens))


def refusal(status: grpc.StatusCode, message: str) -> Refusal:
    """A model's error as the API has it. gRPC's status tells whose fault it is.

    Args:
        status: INVALID_ARGUMENT is the client's fault. INTERNAL is the text model's where FAILED begins the
            message, else Triton's, whose process of the model is dead.
        message: what the error says.
    """
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        if "context" in message and "tokens" in message:
            return bad(message, None, "context_length_exceeded")
        return bad(message, _param(message))
    if status is grpc.StatusCode.INTERNAL and message.startswith(FAILED):
        return failed(message)
    return down(message, "overloaded" if "queue is full" in message else None)


def _param(message: str) -> str | None:
    """The argument that a text model's complaint is about: it begins with the field's name."""
    first = re.split(r"[\s\[]", message.removeprefix("the "), maxsplit=1)[0]
    if "stop string" in message:
        return "stop"
    return first if first in ARGUMENTS else None
