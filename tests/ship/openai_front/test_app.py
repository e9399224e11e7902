"""The endpoints over HTTP, from text models without a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.ship.openai_front.app import application
from pipeline.ship.openai_front.events import TextModels
from tests.text_models import FakeModels


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def client(models: FakeModels) -> Iterator[TestClient]:
    with TestClient(application(models), raise_server_exceptions=False) as client:
        yield client


def refused(response: Any, status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The error of a response, which has the API's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    assert message in error["message"] and error["param"] == param
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert response.headers.get("retry-after") == ("5" if status == 503 else None)
    return error


def test_models_and_health(client: TestClient, models: FakeModels) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [one["id"] for one in listed["data"]] == ["base", "attn2-3"]
    assert client.get("/v1/models/base").json() == listed["data"][0]
    assert client.get("/v1/models/gpt").json()["error"]["code"] == "model_not_found"
    assert client.get("/health/ready").status_code == 200
    assert (
        models.requests == [{"text_input": "a", "max_tokens": 1, "probe": True}] * 2
    )  # each model has answered


def test_completions_and_chats(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"model": "base", "prompt": "a"})
    assert response.json()["choices"][0]["text"] == "A"
    body = {"model": "base", "messages": [{"role": "user", "content": "a"}], "stream": True}
    response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith("data: {") and response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"model": "gpt", "prompt": "a"}, 404, "model", "does not exist"),
        ({"model": "a\0", "prompt": "a"}, 404, "model", "does not exist"),
        ({"model": "base"}, 400, "prompt", "Field required"),
        ({"model": "base", "prompt": "a", "seed": -1}, 400, "seed", "greater than or equal to 0"),
        ({"model": "base", "prompt": "a", "n": 9}, 400, "n", "less than or equal to 8"),
        ({"model": "base", "prompt": "a", "n": True}, 400, "n", "valid integer"),
        ({"model": "base", "prompt": "bug"}, 500, None, "an unexpected error"),
        ([], 400, None, "the body: Input should be an object"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_the_apis_form(
    client: TestClient, body: Any, status: int, param: str | None, message: str, stream: bool
) -> None:
    body = {**body, "stream": stream} if body else body
    refused(client.post("/v1/completions", json=body), status, message, param)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/%ff%00/é", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/openapi.json", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/base", 405, "method_not_allowed"),
    ],
)
def test_other_paths_and_methods(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    assert refused(response, status, "")["code"] == code
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'{"model": "base", "prompt": "\\ud800"}', "Invalid JSON"),
        (b"[" * 100_000, "recursion limit exceeded"),
        (b'{"model": "base", "prompt": "a", "seed": ' + b"1" * 5000 + b"}", "number out of range"),
    ],
)
def test_bodies_that_are_no_json(client: TestClient, body: bytes, message: str) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        headers = {"Content-Type": "application/json; charset=utf-8"}
        refused(client.post(path, content=body, headers=headers), 400, message)


def test_bodies_of_web_forms_are_not_read(client: TestClient) -> None:
    """A page of another site can send them without asking; JSON it cannot."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        body = b'{"model": "base", "prompt": "a"}'
        response = client.post("/v1/completions", content=body, headers={"Content-Type": kind})
        refused(response, 415, "Content-Type: application/json")


def test_an_unexpected_error_is_logged_and_not_shown(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.post("/v1/completions", json={"model": "base", "prompt": "bug"})
    assert "ZeroDivision" not in response.text and "ZeroDivisionError: a bug" in caplog.text

    async def broken() -> None:
        raise ZeroDivisionError("of an endpoint")

    client.app.add_api_route("/broken", broken)  # type: ignore[attr-defined]
    refused(client.get("/broken"), 500, "an unexpected error")
    assert "of an endpoint" in caplog.text


def test_without_a_triton_every_text_is_503() -> None:
    """Nothing listens on port 1."""
    models = TextModels("127.0.0.1:1", ["base_generate"])
    with TestClient(application(models), raise_server_exceptions=False) as client:
        for stream in (False, True):
            body = {"model": "base", "prompt": "a", "stream": stream}
            refused(client.post("/v1/completions", json=body), 503, "failed to connect")
        refused(client.get("/health/ready"), 503, "base does not answer: failed to connect")
