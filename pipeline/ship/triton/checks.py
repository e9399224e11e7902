"""Whether a server really serves: health, every model READY, and one inference of each equal to the same graph run directly.

Health alone proves little: a Python model whose process died stays READY in Triton (triton-inference-server/server#8604).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime.generation import alone
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.runtime.runner import Runner
from pipeline.ship.triton import repository

PROMPT = "The capital of France is"
TOKENS = 8
TOLERANCE = 1e-3
"""Absolute, on logits: the same kernels on the same graph, perhaps in a batch of another size."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a served model."""

    model: str
    what: str
    passed: bool
    detail: str = ""

    def line(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}  {self.model}: {self.what}{f' ({self.detail})' if self.detail else ''}"


def post(url: str, body: Any, timeout: float = 300) -> tuple[int, Any]:
    """(HTTP status, JSON or text of the answer) of a POST; `body` is sent as JSON, bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode(errors="replace")
    try:
        return status, json.loads(text)
    except json.JSONDecodeError:
        return status, text


def stream(url: str, body: Any, timeout: float = 300) -> Iterator[Any]:
    """The events of a server-sent stream, as JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def answers(http: str, model: str) -> str | None:
    """What is wrong with a text model, found by asking it for one token; None where nothing is."""
    try:
        status, answer = post(
            f"{http}/v2/models/{model}/generate", {"text_input": "a", "max_tokens": 1}, timeout=60
        )
    except OSError as error:
        return str(error)
    if status == 200 and isinstance(answer, dict) and "text_output" in answer:
        return None
    reason = answer.get("error", answer) if isinstance(answer, dict) else answer
    return None if "queue is full" in str(reason) else f"HTTP {status}: {reason}"


def examine(folder: Path, manifest: dict[str, Any], http: str, grpc: str) -> Iterator[Check]:
    """Each model's checks, as they are done."""
    import tritonclient.http as client

    with client.InferenceServerClient(http.removeprefix("http://")) as triton:
        states = {
            (entry["name"], entry.get("version")): entry.get("state")
            for entry in triton.get_model_repository_index()
        }
        for name, (version, told) in repository.newest(manifest).items():
            path = folder / told["graph"]
            runner = OnnxRunner(path, open_session(path, path.parent))
            for model in [name] * told["raw_model"] + [f"{name}_generate"]:
                state = states.get((model, str(version)))
                yield Check(model, f"version {version} is READY", state == "READY", state or "not there")
            if told["raw_model"]:
                yield _same_logits(triton, name, runner)
            yield _same_text(http, f"{name}_generate", folder / f"{name}_generate" / str(version), runner)
            yield _streams(http, f"{name}_generate")
            yield _same_over_grpc(grpc, f"{name}_generate", http)
            runner.close()


def direct(runner: Runner, prompts: Prompts, text: str, sampling: Sampling) -> str:
    """The text that the runner writes when it is called without a server."""
    return "".join(piece.text for piece in alone.pieces(runner, prompts, prompts.encode(text), sampling))


def _same_logits(triton: Any, name: str, runner: Runner) -> Check:
    import tritonclient.http as client

    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], np.int64)
    feeds = runner.feeds(ids)
    if "past_key_values" in " ".join(
        feeds
    ):  # with a cache of two tokens, so that its tensors are looked at too
        _, cache = runner.forward(ids[:, :2])
        feeds = runner.feeds(ids[:, 2:], cache)
    inputs = []
    for key, array in feeds.items():
        tensor = client.InferInput(key, list(array.shape), client.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    wanted = "logits"
    answer = triton.infer(name, inputs, outputs=[client.InferRequestedOutput(wanted)]).as_numpy(wanted)
    expected = runner.infer(feeds, [wanted])[wanted]
    worst = float(np.abs(answer - expected).max()) if answer.shape == expected.shape else float("inf")
    return Check(
        name, "logits are those of the graph run directly", worst <= TOLERANCE, f"max abs {worst:.1e}"
    )


def _same_text(http: str, model: str, folder: Path, runner: Runner) -> Check:
    expected = direct(runner, Prompts.load(folder), PROMPT, Sampling(max_tokens=TOKENS))
    status, answer = post(f"{http}/v2/models/{model}/generate", {"text_input": PROMPT, "max_tokens": TOKENS})
    text = answer.get("text_output") if isinstance(answer, dict) else answer
    return Check(
        model, "text is that of the graph run directly", status == 200 and text == expected, repr(text)
    )


def _streams(http: str, model: str) -> Check:
    asked = {"text_input": PROMPT, "max_tokens": TOKENS}
    events = list(stream(f"{http}/v2/models/{model}/generate_stream", {**asked, "stream": True}))
    _, whole = post(f"{http}/v2/models/{model}/generate", asked)
    same = "".join(event.get("text_output", "") for event in events) == whole.get("text_output")
    return Check(model, "streams the same text", same and len(events) > 1, f"{len(events)} pieces")


def _same_over_grpc(grpc: str, model: str, http: str) -> Check:
    text = "".join(grpc_stream(grpc, model, PROMPT, {"max_tokens": TOKENS, "stream": True}))
    _, whole = post(f"{http}/v2/models/{model}/generate", {"text_input": PROMPT, "max_tokens": TOKENS})
    return Check(model, "streams the same text over gRPC", text == whole.get("text_output"))


def grpc_stream(grpc: str, model: str, text: str, fields: dict[str, Any]) -> Iterator[str]:
    """The pieces of a text over gRPC's decoupled stream.

    Raises:
        RuntimeError: what the model says is wrong.
    """
    import queue

    import tritonclient.grpc as client

    kinds = {
        int: ("INT32", np.int32),
        float: ("FP32", np.float32),
        bool: ("BOOL", np.bool_),
        str: ("BYTES", np.object_),
    }
    inputs = []
    for name, value in {"text_input": text, **fields}.items():
        kind, dtype = kinds[type(value)]
        tensor = client.InferInput(name, [1, 1], kind)
        tensor.set_data_from_numpy(np.array([[value.encode() if isinstance(value, str) else value]], dtype))
        inputs.append(tensor)
    came: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with client.InferenceServerClient(grpc) as triton:
        triton.start_stream(lambda result, error: came.put((result, error)))
        triton.async_stream_infer(model, inputs, enable_empty_final_response=True)
        while True:
            result, error = came.get(timeout=300)
            if error is not None:
                raise RuntimeError(str(error))
            piece = result.as_numpy("text_output")
            if piece is not None:
                yield piece.reshape(-1)[0].decode()
            if result.get_response().parameters["triton_final_response"].bool_param:
                return
