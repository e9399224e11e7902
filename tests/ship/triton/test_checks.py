"""How a served model is judged. That a real server passes is tested in test_server.py."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from pipeline.ship.triton import checks, http, text_model


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, {"text_output": "b"}), None),
        ((400, {"error": "the queue is full: 2 requests wait"}), None),  # busy, and well
        ((400, {"error": "Stub process is unhealthy"}), "HTTP 400: Stub process is unhealthy"),
        ((200, {"other": 1}), "HTTP 200: {'other': 1}"),
        ((502, "no JSON"), "HTTP 502: no JSON"),
        (httpx.ReadTimeout("timed out\nmore"), "timed out"),
        (httpx.ConnectError(""), "ConnectError"),
    ],
)
def test_a_model_that_does_not_answer_is_told_from_one_that_is_busy(
    monkeypatch: pytest.MonkeyPatch, answer: Any, problem: str | None
) -> None:
    def post(url: str, body: Any, timeout: float = 0) -> Any:
        assert url == "http://here/v2/models/m_generate/generate" and body["max_tokens"] == 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(http, "post", post)
    assert checks.problem("http://here", "m_generate") == problem


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
