"""Whose fault an error of a text model is."""

from __future__ import annotations

import re

import grpc

from pipeline.ship.openai_front.errors import Refusal, bad, down, failed
from pipeline.ship.triton.in_triton import FAILED

ARGUMENTS = {
    "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "ignore_eos", "logprobs",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
}  # fmt: skip
"""Arguments of the API that text models complain about by the same name."""


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
