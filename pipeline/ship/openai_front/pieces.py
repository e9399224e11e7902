"""The text models of a Triton server over gRPC: fields in, pieces of text out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as client

from pipeline.ship.openai_front.asked import Refusal, bad

ENDING = "_generate"


@dataclass(slots=True)
class Piece:
    """One response of NAME_generate."""

    text: str
    finish: str
    prompt_tokens: int
    tokens: int


class Triton:
    """The text models over gRPC."""

    def __init__(self, address: str, models: Sequence[str]) -> None:
        self.address, self.models = address, {name.removesuffix(ENDING): name for name in models}
        self.born = int(time.time())
        self.client: Any = None

    def model(self, name: str) -> str:
        if name not in self.models:
            raise Refusal(
                404, f"The model '{name}' does not exist", "invalid_request_error", "model", "model_not_found"
            )
        return self.models[name]

    async def pieces(self, model: str, fields: dict[str, Any]) -> AsyncIterator[Piece]:
        """The responses to one request, as they come; leaving the loop cancels the request.

        Raises:
            Refusal: what the model says is wrong.
        """
        if self.client is None:
            self.client = client.InferenceServerClient(self.address)
        flags = dict.fromkeys(
            ("stream", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"), True
        )
        inputs = [_tensor(name, value) for name, value in {**fields, **flags}.items()]

        async def once() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": inputs, "enable_empty_final_response": True}

        answers = self.client.stream_infer(once())
        try:
            async for result, error in answers:
                if error is not None:
                    raise _refusal(error)
                if result.as_numpy("text_output") is not None:
                    yield Piece(
                        _first(result, "text_output").decode(),
                        _first(result, "finish_reason").decode(),
                        int(_first(result, "num_input_tokens")),
                        int(_first(result, "num_output_tokens")),
                    )
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return
        finally:
            answers.cancel()


def _tensor(name: str, value: Any) -> Any:
    kinds = {
        bool: ("BOOL", np.bool_),
        int: ("INT32", np.int32),
        float: ("FP32", np.float32),
        str: ("BYTES", np.object_),
    }
    kind, dtype = (
        ("UINT64", np.uint64)
        if name == "seed"
        else kinds[type(value[0] if isinstance(value, list) else value)]
    )
    values = [
        item.encode() if isinstance(item, str) else item
        for item in (value if isinstance(value, list) else [value])
    ]
    tensor = client.InferInput(name, [1, len(values)], kind)
    try:
        tensor.set_data_from_numpy(np.array([values], dtype))
    except OverflowError:
        raise bad(f"{name} {value} is out of range", name) from None
    return tensor


def _first(result: Any, name: str) -> Any:
    return result.as_numpy(name).reshape(-1)[0]


def _refusal(error: Any) -> Refusal:
    """Triton's error as the API has it."""
    message = str(error.message() if hasattr(error, "message") else error)
    if "queue is full" in message:
        return Refusal(503, message, "server_error", None, "overloaded")
    if "context" in message and "tokens" in message:
        return bad(message, "messages", "context_length_exceeded")
    if any(
        word in message for word in ("unhealthy", "not healthy", "Stub process", "unloaded", "unavailable")
    ):
        return Refusal(503, message, "server_error")
    return bad(message)
