"""Whether a server really serves: every model is READY, and gives what its graph gives when run directly.

Health alone proves little: a Python model whose process died stays READY in Triton (server#8604).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.http as client

from pipeline.runtime.generation import alone
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.runtime.runner import Runner
from pipeline.ship.triton import http, text_model
from pipeline.ship.triton.served import ServedModel
from pipeline.store.records import ShippedVersion
from pipeline.types import Provider, first_line

PROMPT = "The capital of France is"
TOKENS = 8
REQUEST = {"text_input": PROMPT, "max_tokens": TOKENS}
STREAMS = 5
"""Times that a text in one piece is asked for before it counts as not streamed."""
PATIENCE = 30.0
"""Seconds that a model has to give a sign of life."""
TOLERANCE = 1e-3
"""Absolute, on logits: the same kernels on the same graph, perhaps in a batch of another size."""


@dataclass(frozen=True, slots=True)
class ServingCheck:
    """One check of a served model."""

    model: str
    what: str
    passed: bool
    detail: str = ""

    def line(self) -> str:
        """For a person."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{'passed' if self.passed else 'FAILED'}  {self.model}: {self.what}{detail}"


def problem(address: str, model: str, metrics: str | None = None) -> str | None:
    """What is wrong with a text model, after asking it for a sign of life; None where it answers.

    One that an earlier version shipped has no `probe`. It is asked for a token, which waits in its queue:
    where none comes, it is well as long as it writes others.

    Args:
        address: URL of the server's HTTP.
        model: NAME_generate.
        metrics: URL of the server's metrics.
    """
    url, token = f"{address}/v2/models/{model}", {"text_input": "a", "max_tokens": 1}
    try:
        config = http.get(f"{url}/config")
        if config.status_code != httpx.codes.OK:
            return f"HTTP {config.status_code}: {config.text}"
        has_probe = "probe" in [field["name"] for field in config.json()["input"]]
        before = _written(metrics, model) if metrics and not has_probe else 0
        status, answer = http.post(f"{url}/generate", {"probe": True} if has_probe else token, PATIENCE)
    except httpx.TimeoutException as error:
        is_writing = not has_probe and metrics is not None and _written(metrics, model) > before
        return None if is_writing else first_line(error)
    except httpx.HTTPError as error:
        return first_line(error)
    if status == httpx.codes.OK and isinstance(answer, dict) and "text_output" in answer:
        return None
    reason = answer.get("error", answer) if isinstance(answer, dict) else answer
    return None if "queue is full" in str(reason) else f"HTTP {status}: {reason}"


def _written(metrics: str, model: str) -> float:
    """Tokens that a text model has written, of the server's metrics; 0 where they do not say."""
    pattern = rf'^pipeline_generated_tokens_total{{model="{re.escape(model)}"}} (\S+)$'
    match = re.search(pattern, http.get(metrics).text, re.MULTILINE)
    return float(match[1]) if match else 0


def examine(
    folder: Path, models: Sequence[ServedModel], address: str, grpc: str, provider: Provider = "cpu"
) -> Iterator[ServingCheck]:
    """Each model's checks, as they are done.

    Args:
        folder: the model repository.
        models: those that are served.
        address: URL of the server's HTTP.
        grpc: host:port of its gRPC.
        provider: of ONNX Runtime, that the server's graphs run on, and what they are compared with.
    """
    with client.InferenceServerClient(address.removeprefix("http://")) as triton:
        states = {
            (entry["name"], entry.get("version")): entry.get("state", "not there")
            for entry in triton.get_model_repository_index()
        }
        for model in models:
            state = states.get((model.name, str(model.number)), "not there")
            yield ServingCheck(model.name, f"version {model.number} is READY", state == "READY", state)
        for _, group in groupby(models, key=lambda model: model.version.graph):
            texts = list[tuple[str, str]]()
            of_graph = list(group)
            with open_graph(folder, of_graph[0].version, provider) as runner:
                for model in of_graph:
                    if not model.is_text:
                        yield _same_logits(triton, model.name, runner)
                        continue
                    prompts = Prompts.load(folder / model.name / str(model.number))
                    text = direct(runner, prompts, PROMPT, Sampling(max_tokens=TOKENS))
                    texts.append((model.name, text))
            for name, expected in texts:
                yield _same_text(address, name, expected)
                yield _streams(address, name, expected)
                yield _streams_over_grpc(grpc, name, expected)


def open_graph(folder: Path, version: ShippedVersion, provider: Provider = "cpu") -> OnnxRunner:
    """The graph of a version, in ONNX Runtime."""
    path = folder / version.graph
    return OnnxRunner(path, open_session(path, path.parent, provider=provider))


def direct(runner: Runner, prompts: Prompts, text: str, sampling: Sampling) -> str:
    """The text that the runner writes when it is called without a server."""
    return "".join(piece.text for piece in alone.pieces(runner, prompts, prompts.encode(text), sampling))


def _same_logits(triton: Any, name: str, runner: Runner) -> ServingCheck:
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], np.int64)
    feeds = runner.feeds(ids)
    if runner.has_cache:  # two tokens lie in it, so that its tensors are compared too
        _, cache = runner.forward(ids[:, :2])
        feeds = runner.feeds(ids[:, 2:], cache)
    inputs = []
    for key, array in feeds.items():
        tensor = client.InferInput(key, list(array.shape), client.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [client.InferRequestedOutput("logits")]
    answer = triton.infer(name, inputs, outputs=outputs).as_numpy("logits")
    expected = runner.infer(feeds, ["logits"])["logits"]
    worst = float(np.abs(answer - expected).max()) if answer.shape == expected.shape else float("inf")
    what = "logits are those of the graph run directly"
    return ServingCheck(name, what, worst <= TOLERANCE, f"max abs {worst:.1e}")


def _same_text(address: str, model: str, expected: str) -> ServingCheck:
    status, answer = http.post(f"{address}/v2/models/{model}/generate", REQUEST)
    text = answer.get("text_output") if isinstance(answer, dict) else answer
    what = "text is that of the graph run directly"
    return ServingCheck(model, what, status == httpx.codes.OK and text == expected, repr(text))


def _streams(address: str, model: str, expected: str) -> ServingCheck:
    """Whether the text comes in pieces.

    A model sends all text that waits as one response, and on a busy machine a short text may wait whole. So
    one piece is asked for again; a model that does not stream never sends more.
    """
    url = f"{address}/v2/models/{model}/generate_stream"
    for _ in range(STREAMS):
        events = list(http.stream(url, {**REQUEST, "stream": True}))
        if len(events) > 1:
            break
    text = "".join(event.get("text_output", "") for event in events)
    is_streamed = text == expected and len(events) > 1
    return ServingCheck(model, "streams the same text", is_streamed, f"{len(events)} pieces")


def _streams_over_grpc(grpc: str, model: str, expected: str) -> ServingCheck:
    fields: dict[str, text_model.Field] = {"text_input": PROMPT, "max_tokens": TOKENS, "stream": True}
    text = "".join(text_model.stream(grpc, model, fields))
    return ServingCheck(model, "streams the same text over gRPC", text == expected)
