"""What goes back to Triton for each request of NAME_generate, sent beside the batch and not within its steps."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.runtime.generation.writer import Piece


class Outbox:
    """Sends answers from a thread of its own, so that no step of the batch waits for the server (2 to 20 ms a response).

    Where sending falls behind, the pieces of a text that came meanwhile go out as one response.

    Attributes:
        tokens: written so far, over all answers.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.queue: SimpleQueue[Answer | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Sends what is left."""
        self.queue.put(None)
        self.thread.join(timeout=20)

    def _run(self) -> None:
        while (answer := self.queue.get()) is not None:
            try:
                answer.send()
            except Exception as error:  # the server's own; the request is gone
                pb_utils.Logger.log_warn(f"an answer could not be sent: {error}")


class Answer:
    """What goes back for one request: a response for the pieces that are there, or one for all of them."""

    stream = False
    exclude_input_in_output = True
    return_finish_reason = return_num_input_tokens = return_num_output_tokens = False
    prompt, prompt_tokens = "", 0

    def __init__(self, sender: Any, outbox: Outbox) -> None:
        self.sender, self.outbox = sender, outbox
        self.lock, self.is_queued, self.is_first = threading.Lock(), False, True
        self.text, self.tokens, self.finish = "", 0, ""
        self.error: Any = None

    def take(self, piece: Piece) -> None:
        """Keeps what the piece brings, to be sent."""
        if piece.error is not None:
            self.fail(piece.error, pb_utils.TritonError.INTERNAL)
            return
        if piece.finish == "cancelled":
            self.fail(RuntimeError("the request was cancelled"), pb_utils.TritonError.CANCELLED)
            return
        self.outbox.tokens += piece.token is not None
        with self.lock:
            self.text, self.finish = self.text + piece.text, piece.finish or ""
            self.tokens += piece.token is not None
            self._queue(bool(piece.finish or (self.stream and piece.text)))

    def fail(self, error: Exception, code: int) -> None:
        """Ends the answer with an error."""
        with self.lock:
            self.error = pb_utils.TritonError(" ".join(str(error).split()), code)
            self._queue(True)

    def send(self) -> None:
        """One response with all that is there; called by the outbox."""
        with self.lock:
            self.is_queued = False
            text, tokens, finish, error = self.text, self.tokens, self.finish, self.error
            self.text, self.tokens = "", 0
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if error is not None:
            self.sender.send(pb_utils.InferenceResponse(error=error), flags=final)
            return
        if not self.exclude_input_in_output and self.is_first:
            text = self.prompt + text
        self.is_first = False
        values: dict[str, Any] = {"text_output": np.array([[text.encode()]], np.object_)}
        if self.return_finish_reason:
            values["finish_reason"] = np.array([[finish.encode()]], np.object_)
        if self.return_num_input_tokens:
            values["num_input_tokens"] = np.array([[self.prompt_tokens]], np.uint32)
        if self.return_num_output_tokens:
            values["num_output_tokens"] = np.array([[tokens]], np.uint32)
        tensors = [pb_utils.Tensor(name, value) for name, value in values.items()]
        self.sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=final if finish else 0)

    def _queue(self, is_due: bool) -> None:
        """Hands itself to the outbox, once until it has been sent. Call it under the lock."""
        if is_due and not self.is_queued:
            self.is_queued = True
            self.outbox.queue.put(self)
