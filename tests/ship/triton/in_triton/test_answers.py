"""Responses to a request, and the outbox that sends them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import triton_python_backend_utils as pb_utils

from pipeline.runtime.generation.logprobs import TokenLogprob, WrittenToken
from pipeline.runtime.generation.writer import Piece
from pipeline.ship.triton.in_triton import FAILED
from pipeline.ship.triton.in_triton.answers import FLAGS, Answer, AnswerForm, Outbox, Unloaded
from tests.triton_backend import Sender

EVERYTHING = {"return_finish_reason": True, "return_num_input_tokens": True, "return_num_output_tokens": True}


class Held(Outbox):
    """Sends nothing before `flush`."""

    def __init__(self) -> None:
        super().__init__()
        self.close()

    def flush(self) -> None:
        while not self.queue.empty():
            self.queue.get().send()


def answered(form: AnswerForm, *pieces: Piece, flush_each: bool = True) -> Sender:
    sender, outbox = Sender(), Held()
    answer = Answer(sender, outbox)
    answer.form = form
    for piece in pieces:
        answer.take(piece)
        if flush_each:
            outbox.flush()
    outbox.flush()
    return sender


PIECES = (Piece("a", 1), Piece("", 2), Piece("b", 3, "length"))


def test_one_response_at_the_end() -> None:
    sender = answered(AnswerForm(prompt="x", prompt_tokens=4, **EVERYTHING), *PIECES)
    (response,) = sender.responses
    counts = {"num_input_tokens": 4, "num_output_tokens": 3}
    assert response.values() == {"text_output": "ab", "finish_reason": "length", **counts}
    assert sender.final.is_set()


def test_a_stream_has_a_response_for_each_new_text() -> None:
    sender = answered(AnswerForm(stream=True, **EVERYTHING), *PIECES)
    values = [response.values() for response in sender.responses]
    assert [one["text_output"] for one in values] == ["a", "b"]
    assert [one["finish_reason"] for one in values] == ["", "length"]
    assert [one["num_output_tokens"] for one in values] == [1, 2]  # the second token brought no text


def test_what_waits_goes_out_as_one_response() -> None:
    sender = answered(AnswerForm(stream=True), *PIECES, flush_each=False)
    assert [response.values() for response in sender.responses] == [{"text_output": "ab"}]


def test_log_probabilities_go_out_with_their_text() -> None:
    half, whole = TokenLogprob("\\xc3", b"\xc3", -1.5), TokenLogprob("é", "é".encode(), -2.0)
    special = TokenLogprob("<s>", None, -3.0)
    pieces = (
        Piece("", 1, logprobs=()),
        Piece("é", 2, logprobs=(WrittenToken(half, ()), WrittenToken(whole, (whole, special)))),
        Piece("", 3, "stop"),
    )
    form = AnswerForm(stream=True, logprobs=True)
    first, last = (json.loads(r.values()["logprobs"]) for r in answered(form, *pieces).responses)
    plain = {"token": "é", "logprob": -2.0, "bytes": [0xC3, 0xA9]}
    assert first[0] == {"token": "\\xc3", "logprob": -1.5, "bytes": [0xC3], "top": []}
    assert first[1] == {**plain, "top": [plain, {"token": "<s>", "logprob": -3.0, "bytes": None}]}
    assert last == []
    (response,) = answered(AnswerForm(logprobs=True), *pieces).responses
    assert json.loads(response.values()["logprobs"]) == first
    assert "logprobs" not in answered(AnswerForm(), *pieces).responses[0].values()


def test_the_prompt_stands_before_the_first_text_alone() -> None:
    form = AnswerForm(stream=True, exclude_input_in_output=False, prompt="x: ")
    texts = [response.values()["text_output"] for response in answered(form, *PIECES).responses]
    assert texts == ["x: a", "b"]


@pytest.mark.parametrize(
    ("piece", "code", "message"),
    [
        (Piece(error=RuntimeError("two\nlines")), pb_utils.TritonError.INTERNAL, FAILED + "two lines"),
        (Piece(error=Unloaded()), pb_utils.TritonError.UNAVAILABLE, "the model is being unloaded"),
        (Piece("late", finish="cancelled"), pb_utils.TritonError.CANCELLED, "the request was cancelled"),
    ],
)
def test_an_error_ends_the_answer(piece: Piece, code: int, message: str) -> None:
    sender = answered(AnswerForm(), Piece("a", 1), piece)
    (response,) = sender.responses
    assert (response.error.code, response.error.message()) == (code, message)
    assert sender.final.is_set() and not response.output_tensors


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("no"), pb_utils.TritonError.INTERNAL, f"INTERNAL: {FAILED}no"),
        (Unloaded(), pb_utils.TritonError.UNAVAILABLE, "UNAVAILABLE: the model is being unloaded"),
    ],
)
def test_an_error_names_its_status_where_that_is_asked(error: Exception, code: int, message: str) -> None:
    sender, outbox = Sender(), Held()
    answer = Answer(sender, outbox)
    answer.names_status = True
    answer.take(Piece(error=error))
    outbox.flush()
    (response,) = sender.responses
    assert (response.error.code, response.error.message()) == (code, message)


def test_the_outbox_counts_tokens_and_survives_an_error() -> None:
    class Broken(Sender):
        def send(self, response: Any, flags: int = 0) -> None:
            raise RuntimeError("the request is gone")

    outbox, sender = Outbox(), Sender()
    for target in (Broken(), sender):
        answer = Answer(target, outbox)
        answer.take(Piece("a", 1, "stop"))
    assert sender.final.wait(10)
    assert outbox.tokens == 2 and pb_utils.Logger.lines[-1].endswith("the request is gone")
    outbox.close()
    assert not outbox.thread.is_alive()


def test_flags_are_fields_of_the_form() -> None:
    assert set(FLAGS) == set(AnswerForm.__slots__) - {"prompt", "prompt_tokens", "logprobs"}
