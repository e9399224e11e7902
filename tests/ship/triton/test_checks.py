"""How a served model is judged. That a real server passes is tested in test_server.py."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from pipeline.ship.triton import checks, http, text_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """(answer, whether the model has a probe, its metrics) → the problem, and the bodies that were sent."""

    def ask(answer: Any, has_probe: bool, *written: int) -> tuple[str | None, list[Any]]:
        bodies, counts = [], iter(written)

        def get(url: str) -> httpx.Response:
            if url == "http://metrics":
                line = f'pipeline_generated_tokens_total{{model="m_generate"}} {next(counts)}'
                return httpx.Response(200, text=f"# HELP\n{line}\n")
            assert url == "http://here/v2/models/m_generate/config"
            fields = ["text_input", *(["probe"] if has_probe else [])]
            return httpx.Response(200, json={"input": [{"name": name} for name in fields]})

        def post(url: str, body: Any, timeout: float) -> Any:
            assert url == "http://here/v2/models/m_generate/generate" and timeout == checks.PATIENCE
            bodies.append(body)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(http, "get", get)
        monkeypatch.setattr(http, "post", post)
        return checks.problem("http://here", "m_generate", "http://metrics" if written else None), bodies

    return ask


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, {"text_output": "b"}), None),
        ((400, {"error": "the queue is full: 2 requests wait"}), None),  # busy, and well
        ((400, {"error": "Stub process is unhealthy"}), "HTTP 400: Stub process is unhealthy"),
        ((400, {"error": "stuck: the batch"}), "HTTP 400: stuck: the batch"),
        ((200, {"other": 1}), "HTTP 200: {'other': 1}"),
        ((502, "no JSON"), "HTTP 502: no JSON"),
        (httpx.ReadTimeout("timed out\nmore"), "timed out"),
        (httpx.ConnectError(""), "ConnectError"),
    ],
)
@pytest.mark.parametrize("has_probe", [True, False])
def test_a_model_that_does_not_answer_is_told_from_one_that_is_busy(
    asked: Any, has_probe: bool, answer: Any, problem: str | None
) -> None:
    token = {"text_input": "a", "max_tokens": 1}
    assert asked(answer, has_probe) == (problem, [{"probe": True} if has_probe else token])


@pytest.mark.parametrize(("written", "problem"), [((7, 7), "timed out"), ((7, 8), None)])
def test_a_model_without_a_probe_is_busy_while_it_writes(
    asked: Any, written: tuple[int, int], problem: str | None
) -> None:
    """What an earlier version shipped answers behind its queue."""
    assert asked(httpx.ReadTimeout("timed out"), False, *written)[0] == problem
    assert asked(httpx.ReadTimeout("timed out"), True, *written)[0] == "timed out"


def test_a_model_that_is_not_loaded_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "get", lambda url: httpx.Response(400, text="no version is available"))
    assert checks.problem("http://here", "m_generate") == "HTTP 400: no version is available"


@pytest.mark.parametrize(("text", "passed"), [("right", True), ("wrong", False)])
def test_texts_are_compared_with_the_direct_run(
    monkeypatch: pytest.MonkeyPatch, text: str, passed: bool
) -> None:
    pieces = [text[:2], text[2:]]
    monkeypatch.setattr(http, "post", lambda url, body: (200, {"text_output": text}))
    monkeypatch.setattr(http, "stream", lambda url, body: iter([{"text_output": piece} for piece in pieces]))
    monkeypatch.setattr(text_model, "stream", lambda *arguments: iter(pieces))
    assert checks._same_text("", "m", "right").passed is passed
    assert checks._streams("", "m", "right").passed is passed
    assert checks._streams_over_grpc("", "m", "right").passed is passed


def test_a_text_in_one_piece_is_not_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "stream", lambda url, body: iter([{"text_output": "right"}]))
    check = checks._streams("", "m", "right")
    assert not check.passed
    assert check.line() == "FAILED  m: streams the same text (1 pieces)"


def test_a_busy_model_that_sends_a_text_whole_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["right"], ["right"], ["ri", "ght"]]
    monkeypatch.setattr(http, "stream", lambda *_: iter([{"text_output": text} for text in answers.pop(0)]))
    assert checks._streams("", "m", "right").passed and not answers
