"""Errors in the API's form; test_app.py has them through the endpoints."""

from __future__ import annotations

import json

import pytest

from pipeline.ship.openai_front import errors


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "code"),
    [
        (errors.bad("x", "n"), 400, "invalid_request_error", None),
        (errors.bad("x", "messages", "context_length_exceeded"), 400, "invalid_request_error",
         "context_length_exceeded"),
        (errors.down("x", "overloaded"), 503, "server_error", "overloaded"),
        (errors.failed("x"), 500, "server_error", None),
    ],
)  # fmt: skip
def test_form_and_retry_after(refusal: errors.Refusal, status: int, kind: str, code: str | None) -> None:
    response = refusal.response()
    error = json.loads(response.body)["error"]
    assert (response.status_code, error["type"], error["code"]) == (status, kind, code)
    assert set(error) == {"message", "type", "param", "code"} and error["message"] == "x"
    assert ("retry-after" in response.headers) == (status == 503)


def test_nobody_sees_what_was_unexpected(caplog: pytest.LogCaptureFixture) -> None:
    refusal = errors.unexpected(ValueError("a secret"))
    assert refusal.status == 500 and "a secret" not in str(refusal.body)
    assert "ValueError: a secret" in caplog.text
