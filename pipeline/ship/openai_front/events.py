"""The text models of a Triton server over gRPC: fields in, events of text out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import tritonclient.grpc.aio as client
from tritonclient.utils import InferenceServerException

from pipeline.ship.openai_front.errors import Refusal, bad, down
from pipeline.ship.openai_front.faults import model_refusal, refusal
from pipeline.ship.triton import text_model
from pipeline.ship.triton.in_triton import ERROR_STATUS
from pipeline.ship.triton.repository import ENDING
from pipeline.ship.triton.wheel import REQUEST_TIMEOUT
from pipeline.ship.web.model_states import ModelStates

OUTPUTS = ("stream", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
OPTIONAL = {"share", "probe", ERROR_STATUS}
"""Fields that change no text; models of earlier versions lack them."""
CHANNEL = [
    ("grpc.max_send_message_length", client.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", client.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
"""Of the connection to Triton: the client's own sizes, and a second where gRPC would wait up to two minutes
before it tries a server that was started again."""
End = Callable[[Refusal], None]
"""Ends a request with an error."""


@dataclass(frozen=True, slots=True)
class TextEvent:
    """One response of NAME_generate.

    Attributes:
        text: what is new.
        finish: why the text ends; '' where it goes on.
        prompt_tokens, tokens: tokens of the prompt, and of the new text.
        logprobs: of the tokens whose text is out, as the text model describes them.
    """

    text: str
    finish: str
    prompt_tokens: int
    tokens: int
    logprobs: tuple[dict[str, Any], ...] = ()


class TextModels:
    """The text models, by the names that clients use.

    Args:
        address: host:port of Triton's gRPC.
        models: NAME_generate of each.
        request_timeout: seconds that a request may take, its wait included.
        states: which of them answer; requests end where one does not, and where the server stops.
    """

    def __init__(
        self,
        address: str,
        models: Sequence[str],
        request_timeout: float = REQUEST_TIMEOUT,
        states: ModelStates | None = None,
    ) -> None:
        self.address, self.models = address, {name.removesuffix(ENDING): name for name in models}
        self.request_timeout, self.born = request_timeout, int(time.time())
        self.client: Any = None
        self.known: dict[str, frozenset[str]] = {}
        self.running: dict[End, str] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.states = states or ModelStates()
        self.states.observers.append(self.end_all)

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

        The status of a model's error stands in its words. The header triton_grpc_error would make Triton end
        the stream with it, but the end that a Python model sends behind an error then reads freed memory: an
        everyday 400 kills the server (24.10; mended in 26.04, triton-inference-server/server#8708).

        Raises:
            Refusal: what the model says is wrong.
        """
        if self.client is None:
            self.client = client.InferenceServerClient(self.address, channel_args=CHANNEL)
        try:
            known = await self._inputs(self.models[name])
            fields = self._taken({**fields, ERROR_STATUS: True}, known)
            inputs = text_model.tensors({**fields, **dict.fromkeys(OUTPUTS, True)})
        except OverflowError as overflow:
            raise bad(f"a number is out of range: {overflow}") from None

        async def once() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": self.models[name], "inputs": inputs, "enable_empty_final_response": True}

        responses = self.client.stream_infer(once())
        try:
            async for result, error in responses:
                if error is not None:
                    raise model_refusal(str(error.message()), names_status=ERROR_STATUS in known)
                if result.as_numpy("text_output") is not None:
                    yield _event(result)
                if text_model.is_last(result):
                    return
            raise down("the model's answer broke off")
        except grpc.RpcError as error:
            raise refusal(error.code(), str(error.details())) from None
        finally:
            responses.cancel()

    async def _inputs(self, model: str) -> frozenset[str]:
        """The fields that a model takes, asked once."""
        if model not in self.known:
            try:
                metadata = await self.client.get_model_metadata(model)
            except InferenceServerException as error:
                raise down(str(error.message())) from None
            self.known[model] = frozenset(tensor.name for tensor in metadata.inputs)
        return self.known[model]

    def _taken(self, fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
        """The fields without those that change no text, where an earlier version shipped the model.

        Raises:
            Refusal: a field that would change the answer is not known to it.
        """
        for name in fields.keys() - known - OPTIONAL:
            raise bad(f"{name}: an earlier version shipped this model; ship it again to use it", name)
        return {name: value for name, value in fields.items() if name in known}

    @contextmanager
    def limited(self, name: str, end: End) -> Iterator[None]:
        """Within it, `end` is called once the request's time is over, or by `end_all`.

        Raises:
            Refusal: the model is down, or the server stops.
        """
        if (reason := self.states.reason(self.models[name])) is not None:
            raise down(reason)
        self.loop = asyncio.get_running_loop()
        late = down(f"the request took longer than {self.request_timeout:g} s", "timeout")
        timer = self.loop.call_later(self.request_timeout, end, late)
        self.running[end] = name
        try:
            yield
        finally:
            timer.cancel()
            del self.running[end]

    def end_all(self, reason: str, model: str | None) -> None:
        """Ends the requests that run, of one model (NAME_generate) or of all. Any thread may call it."""

        def end() -> None:
            for one, name in list(self.running.items()):
                if model in (None, self.models[name]):
                    one(down(reason))

        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just ended, and the requests with it
                self.loop.call_soon_threadsafe(end)

    async def close(self) -> None:
        """Closes the connection to Triton.

        Its last reference goes here: gRPC's thread ends with it, and not in the interpreter's last moments,
        where it was seen to end the process with SIGSEGV.
        """
        if self.client is not None:
            await self.client.close()
            self.client = None


def _event(result: Any) -> TextEvent:
    """A response; one to a probe has the text alone."""

    def value(name: str, default: Any) -> Any:
        array = result.as_numpy(name)
        return default if array is None else array.reshape(-1)[0]

    text, finish = value("text_output", b"").decode(), value("finish_reason", b"").decode()
    tokens = int(value("num_output_tokens", 0))
    logprobs = tuple(json.loads(value("logprobs", b"[]")))
    return TextEvent(text, finish, int(value("num_input_tokens", 0)), tokens, logprobs)
