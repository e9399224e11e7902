"""Responses to each request of NAME_generate. They are sent beside the batch, not within its steps."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.runtime.generation.logprobs import TokenLogprob, WrittenToken
from pipeline.runtime.generation.rows import NotServed
from pipeline.runtime.generation.writer import Piece
from pipeline.ship.triton.in_triton import FAILED


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the responses to a request hold.

    Attributes:
        stream: a response for each new piece of text, not one at the end.
        exclude_input_in_output: the text does not begin with the prompt.
        return_finish_reason, return_num_input_tokens, return_num_output_tokens: these outputs are there.
        logprobs: so is this one.
        prompt, prompt_tokens: the prompt and its number of tokens.
    """

    stream: bool = False
    exclude_input_in_output: bool = True
    return_finish_reason: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    logprobs: bool = False
    prompt: str = ""
    prompt_tokens: int = 0


FLAGS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
"""Fields of a request that say what its responses hold."""


class Unloaded(NotServed):
    """The model was unloaded before a text was written; once it is loaded again, the client may ask again."""

    def __init__(self) -> None:
        super().__init__("the model is being unloaded")


class Outbox:
    """Sends answers from a thread of its own, because the server takes 2 to 20 ms for each response.

    Where sending falls behind, all text that is waiting goes out as one response.

    Attributes:
        tokens: written so far, over all answers.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.queue: SimpleQueue[Answer | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Sends what is left, then ends the thread."""
        self.queue.put(None)
        self.thread.join(timeout=20)

    def _run(self) -> None:
        while (answer := self.queue.get()) is not None:
            try:
                answer.send()
            except Exception as error:  # noqa: BLE001 - the server's own error; that request is gone, others go on
                pb_utils.Logger.log_warn(f"an answer could not be sent: {error}")


class Answer:
    """The responses to one request.

    Attributes:
        form: what they hold.
        names_status: an error begins with gRPC's name of its status, which a stream does not tell otherwise.
    """

    def __init__(self, sender: Any, outbox: Outbox) -> None:
        self.sender, self.outbox, self.form, self.names_status = sender, outbox, AnswerForm(), False
        self.lock, self.is_queued, self.is_first = threading.Lock(), False, True
        self.text, self.tokens, self.finish = "", 0, ""
        self.logprobs = list[WrittenToken]()
        self.error: Any = None

    def take(self, piece: Piece) -> None:
        """Keeps a piece of the text until it is sent."""
        if piece.error is not None:
            if isinstance(piece.error, NotServed):
                self.fail(piece.error, pb_utils.TritonError.UNAVAILABLE)
            else:
                self.fail(piece.error, pb_utils.TritonError.INTERNAL, FAILED)
            return
        if piece.finish == "cancelled":
            self.fail(RuntimeError("the request was cancelled"), pb_utils.TritonError.CANCELLED)
            return
        self.outbox.tokens += piece.token is not None
        with self.lock:
            self.text, self.finish = self.text + piece.text, piece.finish or ""
            self.tokens += piece.token is not None
            self.logprobs += piece.logprobs
            self._queue(bool(piece.finish or (self.form.stream and piece.text)))

    def fail(self, error: Exception, code: int, before: str = "") -> None:
        """Ends the answer with an error; `before` stands before its text."""
        with self.lock:
            text = " ".join(str(error).split()) or type(error).__name__
            status = f"{_status(code)}: " if self.names_status else ""
            self.error = pb_utils.TritonError(status + before + text, code)
            self._queue(True)

    def send(self) -> None:
        """Sends one response with all text that is waiting. The outbox calls it."""
        with self.lock:
            self.is_queued = False
            text, tokens, finish, error = self.text, self.tokens, self.finish, self.error
            logprobs = self.logprobs
            self.text, self.tokens, self.logprobs = "", 0, []
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if error is not None:
            self.sender.send(pb_utils.InferenceResponse(error=error), flags=final)
            return
        if not self.form.exclude_input_in_output and self.is_first:
            text = self.form.prompt + text
        self.is_first = False
        tensors = self._tensors(text, tokens, finish)
        if self.form.logprobs:
            tensors.append(_text_tensor("logprobs", json.dumps([_described(one) for one in logprobs])))
        response = pb_utils.InferenceResponse(output_tensors=tensors)
        self.sender.send(response, flags=final if finish else 0)

    def _tensors(self, text: str, tokens: int, finish: str) -> list[Any]:
        tensors, counts = [_text_tensor("text_output", text)], dict[str, int]()
        if self.form.return_finish_reason:
            tensors.append(_text_tensor("finish_reason", finish))
        if self.form.return_num_input_tokens:
            counts["num_input_tokens"] = self.form.prompt_tokens
        if self.form.return_num_output_tokens:
            counts["num_output_tokens"] = tokens
        numbers = (pb_utils.Tensor(name, np.array([[n]], np.uint32)) for name, n in counts.items())
        return [*tensors, *numbers]

    def _queue(self, is_due: bool) -> None:
        """Puts itself into the outbox, once until it has been sent. Call it under the lock."""
        if is_due and not self.is_queued:
            self.is_queued = True
            self.outbox.queue.put(self)


def _status(code: int) -> str:
    """Name that gRPC has for Triton's code of an error."""
    # Triton fills its module after this one is imported, so that its codes are no table here.
    for name in ("UNAVAILABLE", "CANCELLED", "INTERNAL"):
        if code == getattr(pb_utils.TritonError, name):
            return name
    return "INVALID_ARGUMENT"


def _text_tensor(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([[text.encode()]], np.object_))


def _described(token: WrittenToken) -> dict[str, Any]:
    """A token of the output `logprobs`."""
    return {**_plain(token.chosen), "top": [_plain(one) for one in token.likeliest]}


def _plain(token: TokenLogprob) -> dict[str, Any]:
    content = None if token.bytes is None else list(token.bytes)
    return {"token": token.token, "logprob": token.logprob, "bytes": content}
