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


@pytest.mark.parametrize(
    ("message", "names_status", "expected", "words"),
    [
        ("INVALID_ARGUMENT: the prompt is empty", True, 400, "the prompt is empty"),
        ("INTERNAL: the text could not be written: x", True, 500, "the text could not be written: x"),
        ("INTERNAL: stuck: no sign of life", True, 503, "stuck: no sign of life"),
        ("CANCELLED: the request was cancelled", True, 503, "the request was cancelled"),
        ("Stub process 'm' is not healthy", True, 503, "Stub process 'm' is not healthy"),
        ("prompt: of Triton itself", True, 503, "prompt: of Triton itself"),
        # Of a model that an earlier version shipped.
        ("the prompt has 9 tokens; the context 4", False, 400, "the prompt has 9 tokens; the context 4"),
        ("the text could not be written: x", False, 500, "the text could not be written: x"),
        ("the queue is full: 2 requests wait", False, 503, "the queue is full: 2 requests wait"),
        ("INVALID_ARGUMENT: a text", False, 503, "INVALID_ARGUMENT: a text"),
    ],
)
def test_errors_within_a_stream(message: str, names_status: bool, expected: int, words: str) -> None:
    refusal = faults.model_refusal(message, names_status=names_status)
    assert (refusal.status, refusal.body["error"]["message"]) == (expected, words)
