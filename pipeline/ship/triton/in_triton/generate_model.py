"""The Triton model NAME_generate (`model.py` in the repository): text in, text out, streamed.

It owns tokenizer, cache and loop in one process and calls ONNX Runtime or TensorRT itself; the code of the loop lies
beside it in `pipeline/`, the same files that `pipeline generate` runs. Field names are those of TensorRT-LLM's backend.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pipeline.runtime.generation.batcher import Batcher, QueueFull  # noqa: E402
from pipeline.runtime.generation.prompts import Prompts  # noqa: E402
from pipeline.runtime.generation.sampling import Sampling  # noqa: E402
from pipeline.runtime.generation.writer import Writer  # noqa: E402
from pipeline.runtime.runner import Runner  # noqa: E402 - the shipped copy beside this file
from pipeline.ship.triton.in_triton.answers import Answer, Outbox  # noqa: E402
from pipeline.types import UserError  # noqa: E402

POLL = 0.1
"""Seconds between two looks at whether a request was cancelled: each is a message to the server."""
SAMPLING = {
    "max_tokens": int, "temperature": float, "top_k": int, "top_p": float, "seed": int, "repetition_penalty": float,
    "presence_penalty": float, "frequency_penalty": float, "ignore_eos": bool,
}  # fmt: skip
FLAGS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
)


class TritonPythonModel:
    """Answers every request from one batcher, in a thread of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Checks that the artefact is the one that was shipped, opens it, and writes one token to warm it up."""
        settings = {
            key: entry["string_value"]
            for key, entry in json.loads(args["model_config"])["parameters"].items()
        }
        shipped = json.loads((HERE / "artefact.json").read_text())
        repository = Path(args["model_repository"]).parent
        try:
            if settings["verify"] == "sha256":
                _verify(repository, shipped["files"])
            self.prompts = Prompts.load(HERE)
            self.runner = _open(repository, shipped, settings)
            self.batcher = Batcher(
                self.runner, int(settings["rows"]), int(settings["cache_tokens"]), int(settings["queue"])
            )
            _warm(self.batcher, self.prompts)
        except (UserError, OSError) as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._metrics(args["model_name"])
        self.told: tuple[int, int, int] = (0, 0, 0)
        self.outbox = Outbox()
        self.stopping = False
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Puts the requests into the queue; answers come from the batcher's thread."""
        for request in requests:
            answer = Answer(request.get_response_sender(), self.outbox)
            try:
                self.batcher.add(self._writer(request, answer))
            except QueueFull as error:
                answer.fail(error, pb_utils.TritonError.UNAVAILABLE)
            except (UserError, ValueError, TypeError, OverflowError) as error:
                answer.fail(error, pb_utils.TritonError.INVALID_ARG)

    def finalize(self) -> None:
        """Ends what still runs, with an error that says so."""
        self.stopping = True
        self.thread.join(timeout=20)
        self.batcher.drain(RuntimeError("the model is being unloaded"))
        self.outbox.close()
        self.runner.close()
        del (
            self.running,
            self.waiting,
            self.tokens_written,
            self.families,
        )  # the stub crashes where it outlives them

    def _run(self) -> None:
        while not self.stopping:
            self.batcher.wait(0.2)
            self.batcher.step()
            self._tell()

    def _tell(self) -> None:
        """Puts what has changed on /metrics: each is a message to the server."""
        now = self.batcher.running, len(self.batcher.waiting), self.outbox.tokens
        for metric, value, before in zip((self.running, self.waiting), now, self.told, strict=False):
            if value != before:
                metric.set(value)
        if now[2] > self.told[2]:
            self.tokens_written.increment(now[2] - self.told[2])
        self.told = now

    def _writer(self, request: Any, answer: Answer) -> Writer:
        """The request as a row of the batch.

        Raises:
            UserError: a field is missing, wrong or unknown.
        """
        fields = _fields(request)
        text, messages = fields.pop("text_input", None), fields.pop("messages", None)
        if (text is None) == (messages is None):
            raise UserError("exactly one of text_input and messages is needed")
        for flag in FLAGS:
            setattr(answer, flag, bool(fields.pop(flag, flag == "exclude_input_in_output")))
        stop = tuple(fields.pop("stop_words", ()))
        sampling = Sampling(stop=stop, **{name: SAMPLING[name](value) for name, value in fields.items()})
        if messages is not None:
            try:
                text = self.prompts.render(json.loads(messages))
            except json.JSONDecodeError as error:
                raise UserError(f"messages is not JSON: {error}") from None
        prompt = self.prompts.encode(text or "", begin=messages is None)
        answer.prompt, answer.prompt_tokens = text or "", len(prompt)
        return Writer(prompt, sampling, self.prompts, answer.take, _polled(answer.sender))

    def _metrics(self, name: str) -> None:
        """On Triton's /metrics; the families are kept alive here, or their metrics vanish."""
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        self.families = [
            pb_utils.MetricFamily("pipeline_running_requests", "Requests in the batch", gauge),
            pb_utils.MetricFamily("pipeline_waiting_requests", "Requests in the queue", gauge),
            pb_utils.MetricFamily("pipeline_generated_tokens_total", "Tokens written", counter),
        ]
        self.running, self.waiting, self.tokens_written = (
            f.Metric(labels={"model": name}) for f in self.families
        )


def _fields(request: Any) -> dict[str, Any]:
    """Name → value, from the input tensors and from the request's parameters (`generate` puts unknown JSON keys there).

    Raises:
        UserError: a name that means nothing here, or text that is no UTF-8.
    """
    found: dict[str, Any] = {}
    for tensor in request.inputs():
        value = tensor.as_numpy()
        if value.dtype == np.object_ or value.dtype.kind == "S":
            try:
                texts = [
                    item.decode() if isinstance(item, bytes) else str(item) for item in value.reshape(-1)
                ]
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{tensor.name()} is no UTF-8 text ({error.reason} at byte {error.start})"
                ) from None
            found[tensor.name()] = texts if tensor.name() == "stop_words" else "".join(texts)
        elif value.size == 1:
            found[tensor.name()] = value.reshape(-1)[0].item()
        else:
            raise UserError(f"{tensor.name()} has {value.size} values; one is expected")
    parameters = json.loads(request.parameters() or "{}")
    for name, value in parameters.items():
        if name.startswith(("triton_", "sequence_", "priority", "timeout", "binary_")) or name in found:
            continue
        if name not in SAMPLING and name not in FLAGS:
            raise UserError(f"there is no field {name!r}; the fields are in config.pbtxt")
        found[name] = value
    return found


def _polled(sender: Any) -> Any:
    """Whether the request was cancelled, looked up every POLL seconds at most."""
    seen, after = False, 0.0

    def cancelled() -> bool:
        nonlocal seen, after
        if not seen and time.monotonic() > after:
            seen, after = bool(sender.is_cancelled()), time.monotonic() + POLL
        return seen

    return cancelled


def _verify(repository: Path, files: dict[str, Any]) -> None:
    for name, entry in files.items():
        with (repository / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise UserError(
                    f"{repository / name} is not what was shipped (SHA-256 differs); ship it again"
                )


def _open(repository: Path, shipped: dict[str, Any], settings: dict[str, str]) -> Runner:
    """The plan on its GPU, or the graph in ONNX Runtime: on the CPU where `pipeline serve` says so."""
    on_cpu = os.environ.get("PIPELINE_STANDIN") == "1"
    if shipped["plan"] and not on_cpu:
        from pipeline.runtime.runner import Limits
        from pipeline.runtime.tensorrt import Plan, TrtRunner

        facts = {**shipped["engine"], "limits": Limits(**shipped["engine"]["limits"])}
        return TrtRunner(repository / shipped["plan"], Plan(**facts))
    import onnxruntime as ort

    from pipeline.runtime.onnxruntime import PROVIDERS, OnnxRunner, open_session

    provider = settings["provider"]
    if provider == "auto":
        provider = "cuda" if PROVIDERS["cuda"] in ort.get_available_providers() else "cpu"
    path = repository / shipped["graph"]
    session = open_session(path, path.parent, int(settings["threads"]), "cpu" if on_cpu else provider)
    pb_utils.Logger.log_info(f"{HERE.parent.name}: {path} in {session.get_providers()[0]}")
    return OnnxRunner(path, session)


def _warm(batcher: Batcher, prompts: Prompts) -> None:
    errors = list[Exception]()
    batcher.add(
        Writer(
            prompts.encode("Hello"),
            Sampling(max_tokens=2),
            prompts,
            lambda p: errors.extend([p.error] if p.error else []),
        )
    )
    while batcher.step():
        pass
    if errors:
        raise UserError(f"the artefact does not run: {errors[0]}")
