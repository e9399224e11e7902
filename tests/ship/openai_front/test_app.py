"""The endpoints over HTTP, from text models without a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.ship.openai_front.app import application
from tests.text_models import FakeModels


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def client(models: FakeModels) -> Iterator[TestClient]:
    with TestClient(application(models)) as client:
        yield client


def test_models_and_health(client: TestClient, models: FakeModels) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [one["id"] for one in listed["data"]] == ["base", "attn2-3"]
    assert client.get("/v1/models/base").json() == listed["data"][0]
    assert client.get("/v1/models/gpt").json()["error"]["code"] == "model_not_found"
    assert client.get("/health/ready").status_code == 200
    assert models.requests == [{"text_input": "a", "max_tokens": 1}] * 2  # each model has answered


def test_completions_and_chats(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"model": "base", "prompt": "a"})
    assert response.json()["choices"][0]["text"] == "A"
    body = {"model": "base", "messages": [{"role": "user", "content": "a"}], "stream": True}
    response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith("data: {") and response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "gpt", "prompt": "a"}, 404, "model"),
        ({"model": "base"}, 400, "prompt"),
        ({"model": "base", "prompt": "a", "seed": -1}, 400, "seed"),
        ({"model": "base", "prompt": "a", "n": 3}, 400, "n"),
        ([], 400, None),
    ],
)
def test_errors_have_the_apis_form(client: TestClient, body: Any, status: int, param: str | None) -> None:
    response = client.post("/v1/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == status and error["param"] == param
    assert error["type"] == "invalid_request_error" and error["message"]
