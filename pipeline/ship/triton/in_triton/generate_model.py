"""The Triton model NAME_generate: text in, text out, streamed.

It owns tokenizer, cache and loop in one process, and calls ONNX Runtime or TensorRT itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.runtime.generation.batcher import Batcher
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.rows import NotServed, Turn
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.writer import Piece, Writer
from pipeline.runtime.runner import Runner
from pipeline.ship.triton.in_triton import ERROR_STATUS, FAILED
from pipeline.ship.triton.in_triton.answers import Answer, Outbox, Unloaded
from pipeline.ship.triton.in_triton.artefact import ServedArtefact
from pipeline.ship.triton.in_triton.parameters import Parameters, seconds
from pipeline.ship.triton.in_triton.requests import TextRequest, is_set
from pipeline.types import UserError

FIRST = "Hello"
"""What the model continues to show that it runs."""
STUCK = 120.0
"""Seconds without a sign of life of the batcher after which a probe is told that it is stuck."""
POLL = 0.1
"""Seconds between two questions whether a request was cancelled: each is a message to the server."""


class TritonPythonModel:
    """Answers every request from one batcher, in a thread of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Checks that the artefact is the one that was shipped, opens it, and writes a first text with it."""
        home = Path(args["model_repository"])
        folder = home / args["model_version"]
        try:
            parameters, artefact = Parameters.of(args["model_config"]), ServedArtefact.read(folder)
            if parameters.verify == "sha256":
                artefact.verify(home.parent)
            self.prompts = Prompts.load(folder)
            self.runner = _open(home.parent, artefact, parameters)
            self.runner.embedding_rows = artefact.embedding_rows
            self.batcher = Batcher(self.runner, parameters.rows, parameters.cache_tokens, parameters.queue)
            self.request_timeout = _request_timeout(parameters)
            _warm(self.batcher, self.prompts)
        except (UserError, OSError) as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self.metrics = Metrics(args["model_name"])
        self.outbox = Outbox()
        self.is_stopping = False
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Puts the requests into the queue. Answers come from the batcher's thread.

        Whatever one request does, it gets its own error: one that left here would end all of them.
        """
        for request in requests:
            answer = Answer(request.get_response_sender(), self.outbox)
            try:
                answer.names_status = is_set(request, ERROR_STATUS)
                if is_set(request, "probe"):
                    self._probe(answer)
                    continue
                text = TextRequest.read(request, self.prompts)
                answer.form, is_cancelled = text.form, _polled(answer.sender)
                turn = Turn(text.share, self.request_timeout)
                self.batcher.add(
                    Writer(text.prompt, text.sampling, self.prompts, answer.take, is_cancelled, turn)
                )
            except NotServed as error:
                answer.fail(error, pb_utils.TritonError.UNAVAILABLE)
            except (UserError, ValueError, TypeError, OverflowError, RecursionError) as error:
                answer.fail(error, pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # noqa: BLE001 - such as no memory, or the tokenizer's own
                answer.fail(error, pb_utils.TritonError.INTERNAL, FAILED)

    def _probe(self, answer: Answer) -> None:
        """A sign of life: at once where requests wait or run, else by writing a token.

        No request comes between the question whether it is busy and the token: Triton calls `execute` once at
        a time. So the token does not wait in a queue.
        """
        silence = self.batcher.silence
        if silence > STUCK or not self.thread.is_alive():
            error = RuntimeError(f"stuck: the batch gave no sign of life for {silence:.0f} s")
            answer.fail(error, pb_utils.TritonError.INTERNAL)
        elif self.batcher.busy:
            state = f"busy: {self.batcher.running} requests run, {len(self.batcher.waiting)} wait"
            answer.take(Piece(state, finish="stop"))
        else:
            prompt = self.prompts.encode(FIRST)
            self.batcher.add(Writer(prompt, Sampling(max_tokens=1), self.prompts, answer.take))

    def finalize(self) -> None:
        """Ends what still runs, with an error that says so."""
        self.is_stopping = True
        self.thread.join(timeout=20)
        self.batcher.drain(Unloaded())
        self.outbox.close()
        self.runner.close()
        del self.metrics  # the stub crashes where Triton's metrics outlive it

    def _run(self) -> None:
        while not self.is_stopping:
            self.batcher.wait(0.2)
            self.batcher.step()
            try:
                self.metrics.update(self.batcher.running, len(self.batcher.waiting), self.outbox.tokens)
            except Exception as error:  # noqa: BLE001 - the server's own; the texts go on without numbers
                pb_utils.Logger.log_warn(f"the metrics could not be updated: {error}")


class Metrics:
    """What stands on Triton's /metrics."""

    def __init__(self, model: str) -> None:
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        # The families are kept: their metrics vanish with them.
        self.families = [
            pb_utils.MetricFamily("pipeline_running_requests", "Requests in the batch", gauge),
            pb_utils.MetricFamily("pipeline_waiting_requests", "Requests in the queue", gauge),
            pb_utils.MetricFamily("pipeline_generated_tokens_total", "Tokens written", counter),
        ]
        self.running, self.waiting, self.tokens = (
            family.Metric(labels={"model": model}) for family in self.families
        )
        self.last = 0, 0, 0

    def update(self, running: int, waiting: int, tokens: int) -> None:
        """Puts what has changed on /metrics: each change is a message to the server."""
        if running != self.last[0]:
            self.running.set(running)
        if waiting != self.last[1]:
            self.waiting.set(waiting)
        if tokens > self.last[2]:
            self.tokens.increment(tokens - self.last[2])
        self.last = running, waiting, tokens


def _polled(sender: Any) -> Callable[[], bool]:
    """Whether the request was cancelled, asked every POLL seconds at most."""
    is_cancelled, next_time = False, 0.0

    def cancelled() -> bool:
        nonlocal is_cancelled, next_time
        if not is_cancelled and time.monotonic() > next_time:
            is_cancelled, next_time = bool(sender.is_cancelled()), time.monotonic() + POLL
        return is_cancelled

    return cancelled


def _open(repository: Path, artefact: ServedArtefact, parameters: Parameters) -> Runner:
    """The plan on its GPU, or the graph in ONNX Runtime; in `pipeline serve` the graph, where that says."""
    stands_in = os.environ.get("PIPELINE_STANDIN") == "1"
    if artefact.plan and artefact.engine and not stands_in:
        from pipeline.runtime.tensorrt import TrtRunner

        return TrtRunner(repository / artefact.plan, artefact.engine)
    from pipeline.runtime.onnxruntime import OnnxRunner, open_session, refusal

    provider = os.environ.get("PIPELINE_PROVIDER", "cpu") if stands_in else parameters.provider
    if provider == "auto":
        reason = refusal("cuda")
        provider = "cpu" if reason else "cuda"
        pb_utils.Logger.log_info(f"provider auto is {provider}" + (f": {reason}" if reason else ""))
    path = repository / artefact.graph
    session = open_session(path, path.parent, parameters.threads, provider)
    pb_utils.Logger.log_info(f"{path} in {session.get_providers()[0]}")
    return OnnxRunner(path, session)


def _request_timeout(parameters: Parameters) -> float:
    """Seconds that a request may take: those that `pipeline serve` says, else those of config.pbtxt.

    Raises:
        UserError: the variable is no number of seconds.
    """
    name = "PIPELINE_REQUEST_TIMEOUT"
    if os.environ.get("PIPELINE_STANDIN") == "1" and name in os.environ:
        return seconds(os.environ[name], name)
    return parameters.request_timeout


def _warm(batcher: Batcher, prompts: Prompts) -> None:
    errors = list[Exception]()
    writer = Writer(
        prompts.encode(FIRST),
        Sampling(max_tokens=2),
        prompts,
        lambda piece: errors.extend([piece.error] if piece.error else []),
    )
    batcher.add(writer)
    while batcher.step():
        pass
    if errors:
        raise UserError(f"the artefact does not run: {errors[0]}")
