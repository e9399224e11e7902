"""Whose fault an error of a text model is: by gRPC's status, not by its words."""

from __future__ import annotations

import grpc
import pytest

from pipeline.ship.openai_front import faults


@pytest.mark.parametrize(
    ("status", "message", "expected", "code", "param"),
    [
        ("UNAVAILABLE", "the queue is full: 2 requests wait", 503, "overloaded", None),
        ("UNAVAILABLE", "the model is being unloaded", 503, None, None),
        ("UNAVAILABLE", "failed to connect to all addresses", 503, None, None),
        ("CANCELLED", "the request was cancelled", 503, None, None),
        ("INTERNAL", "Stub process 'x' is not healthy", 503, None, None),
        ("INTERNAL", "the text could not be written: the model's logits are not finite", 500, None, None),
        ("INVALID_ARGUMENT", "the prompt has 9 tokens; the context 4", 400, "context_length_exceeded", None),
        ("INVALID_ARGUMENT", "top_p 0 is not above 0", 400, None, "top_p"),
        ("INVALID_ARGUMENT", "the prompt is empty", 400, None, "prompt"),
        ("INVALID_ARGUMENT", "messages[0] is not a role", 400, None, "messages"),
        ("INVALID_ARGUMENT", "a stop string is empty", 400, None, "stop"),
        ("INVALID_ARGUMENT", "the model is unhealthy and unavailable", 400, None, None),  # not by words
    ],
)  # fmt: skip
def test_errors_by_the_status_of_grpc(
    status: str, message: str, expected: int, code: str | None, param: str | None
) -> None:
    refusal = faults.refusal(grpc.StatusCode[status], message)
    body = refusal.body["error"]
    assert (refusal.status, body["message"]) == (expected, message)
    assert (body["code"], body["param"]) == (code, param)
