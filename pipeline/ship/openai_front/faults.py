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


def model_refusal(message: str, *, names_status: bool) -> Refusal:
    """An error that came within a stream, which has words alone, as the API has it.

    Args:
        message: what the error says.
        names_status: the model begins each of its errors with gRPC's status (ERROR_STATUS), so that one
            without is of Triton itself: the model is not there. One that an earlier version shipped does not;
            of its errors only those that name a field are known to be the client's fault.
    """
    name, _, words = message.partition(": ")
    if names_status and name in grpc.StatusCode.__members__:
        return refusal(grpc.StatusCode[name], words)
    if not names_status and message.startswith(FAILED):
        return failed(message)
    is_bad = not names_status and _param(message) is not None
    return refusal(grpc.StatusCode.INVALID_ARGUMENT if is_bad else grpc.StatusCode.UNAVAILABLE, message)


def _param(message: str) -> str | None:
    """The argument that a text model's complaint is about: it begins with the field's name."""
    first = re.split(r"[\s\[]", message.removeprefix("the "), maxsplit=1)[0]
    if "stop string" in message:
        return "stop"
    return first if first in ARGUMENTS else None
