"""NAME_generate, in this process and in the real Triton server: it writes what its graph writes by itself."""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import triton_python_backend_utils as pb_utils
import tritonclient.grpc as grpcclient

from pipeline.runtime import onnxruntime
from pipeline.runtime.generation.prompts import Conventions, Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.ship.triton import checks, http, repository, ship, text_model
from pipeline.ship.triton.in_triton import generate_model
from pipeline.ship.triton.in_triton.artefact import ServedArtefact
from pipeline.ship.triton.in_triton.generate_model import TritonPythonModel
from pipeline.ship.triton.in_triton.parameters import Parameters
from tests import serving, soak
from tests.serving import BASE, NARROW, PROMPTS, Served, until
from tests.triton_backend import Request


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with serving.within(tmp_path_factory.mktemp("model")) as folder:
        repo = Path("engines/triton").resolve()
        ship.ship(serving.project(folder, ("base",)), repo)
        return repo


@pytest.fixture
def arguments(repo: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What Triton gives the model."""
    monkeypatch.setenv("PIPELINE_STANDIN", "1")
    parameters = {
        "rows": 2,
        "cache_tokens": 4096,
        "queue": 1,
        "provider": "auto",
        "threads": 1,
        "verify": "sha256",
    }
    entries = {name: {"string_value": str(value)} for name, value in parameters.items()}
    return {
        "model_repository": str(repo / f"{BASE}_generate"),
        "model_version": "1",
        "model_name": f"{BASE}_generate",
        "model_config": json.dumps({"parameters": entries}),
    }


def test_in_this_process(repo: Path, arguments: dict[str, str]) -> None:
    """Texts are those of the graph run directly; errors have their codes; an unload ends what still runs."""
    model = TritonPythonModel()
    model.initialize(arguments)
    requests = [Request(text_input=text, max_tokens=8) for text in PROMPTS[:2]]
    wrong, endless = Request(text_input=""), Request(text_input="a", max_tokens=4000, ignore_eos=True)
    named = Request(text_input="", return_error_status=True)
    model.execute([requests[0], wrong, named])
    assert requests[0].sender.final.wait(30)
    model.execute([requests[1]])
    assert requests[1].sender.final.wait(30)
    version = repository.newest(repository.read(repo))[BASE][1]
    with checks.open_graph(repo, version) as runner:
        for text, request in zip(PROMPTS[:2], requests, strict=True):
            expected = checks.direct(runner, model.prompts, text, Sampling(max_tokens=8))
            assert [response.values() for response in request.sender.responses] == [{"text_output": expected}]
    (response,) = wrong.sender.responses
    assert response.error.code == pb_utils.TritonError.INVALID_ARG and "empty" in response.error.message()
    assert named.sender.responses[0].error.message() == f"INVALID_ARGUMENT: {response.error.message()}"
    until(lambda: model.metrics.tokens.value == 16)
    model.execute([endless])
    until(lambda: model.metrics.running.value == 1)
    model.finalize()
    (response,) = endless.sender.responses
    assert response.error.message() == "the model is being unloaded"
    assert response.error.code == pb_utils.TritonError.UNAVAILABLE
    assert not model.thread.is_alive() and not hasattr(model, "metrics")


@pytest.mark.parametrize(
    ("variables", "configured", "opened_on"),
    [
        ({"PIPELINE_STANDIN": "1", "PIPELINE_PROVIDER": "cuda"}, "cpu", "cuda"),
        ({"PIPELINE_STANDIN": "1", "PIPELINE_PROVIDER": "cpu"}, "cuda", "cpu"),
        ({"PIPELINE_STANDIN": "1"}, "cuda", "cpu"),
        ({"PIPELINE_PROVIDER": "cpu"}, "cuda", "cuda"),  # a Triton of the user's own
        ({}, "auto", "cuda"),
    ],
)
def test_the_provider_is_that_of_serve_or_of_the_config(
    repo: Path,
    variables: dict[str, str],
    configured: str,
    opened_on: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, asked = onnxruntime.open_session, list[str]()

    def open_session(path: Path, folder: Path, threads: int, provider: str) -> Any:
        asked.append(provider)
        return opened(path, folder, threads)

    monkeypatch.setattr(onnxruntime, "open_session", open_session)
    monkeypatch.setattr(onnxruntime, "refusal", lambda _: None)
    for name in ("PIPELINE_STANDIN", "PIPELINE_PROVIDER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    artefact = ServedArtefact.read(repo / f"{BASE}_generate" / "1")
    with generate_model._open(repo, artefact, Parameters(1, 64, 1, configured, threads=1)):
        assert asked == [opened_on]


def test_a_full_queue_is_unavailable(arguments: dict[str, str]) -> None:
    model = TritonPythonModel()
    model.initialize(arguments)
    requests = [Request(text_input="a", max_tokens=2000, ignore_eos=True) for _ in range(6)]
    model.execute(requests)
    until(lambda: any(request.sender.final.is_set() for request in requests))
    for request in requests:
        request.sender.cancelled = True
    assert all(request.sender.final.wait(30) for request in requests)
    errors = [request.sender.responses[-1].error for request in requests]
    refused = [error for error in errors if error.code == pb_utils.TritonError.UNAVAILABLE]
    cancelled = [error for error in errors if error.code == pb_utils.TritonError.CANCELLED]
    assert 3 <= len(refused) <= 5 and len(refused) + len(cancelled) == 6  # two run and one waits, at most
    assert {error.message() for error in refused} == {"the queue is full: 1 requests wait; try again later"}
    model.finalize()


def opened(arguments: dict[str, str], queue: int = 1) -> TritonPythonModel:
    model, config = TritonPythonModel(), json.loads(arguments["model_config"])
    config["parameters"]["queue"] = {"string_value": str(queue)}
    model.initialize({**arguments, "model_config": json.dumps(config)})
    return model


def endless(**fields: Any) -> Request:
    return Request(text_input="a", max_tokens=2000, ignore_eos=True, **fields)


def ended(request: Request) -> tuple[int, str]:
    """Code and words of the error that a request ends with."""
    assert request.sender.final.wait(30)
    error = request.sender.responses[-1].error
    return error.code, error.message()


def test_a_request_ends_when_its_time_is_over(
    arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that run (two rows) and the one that waits."""
    monkeypatch.setenv("PIPELINE_REQUEST_TIMEOUT", "0.5")
    model = opened(arguments, queue=2)
    requests = [endless(), endless()]
    model.execute(requests)
    until(lambda: model.batcher.running == 2)
    waits = endless()
    model.execute([waits])
    for request in (*requests, waits):
        message = "the request took longer than 0.5 s (request_timeout)"
        assert ended(request) == (pb_utils.TritonError.UNAVAILABLE, message)
    until(lambda: not model.batcher.busy)
    model.finalize()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"PIPELINE_STANDIN": "1", "PIPELINE_REQUEST_TIMEOUT": "7.5"}, 7.5),
        ({"PIPELINE_STANDIN": "1"}, 60),
        ({"PIPELINE_REQUEST_TIMEOUT": "7.5"}, 60),  # a Triton of the user's own
    ],
)
def test_the_time_limit_is_that_of_serve_or_of_the_config(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIPELINE_STANDIN", "PIPELINE_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert generate_model._request_timeout(Parameters(1, 64, 1, request_timeout=60)) == seconds


def test_requests_of_one_share_take_turns_as_one(arguments: dict[str, str]) -> None:
    model = opened(arguments, queue=40)
    many = [endless(share="one") for _ in range(20)]
    model.execute(many)
    until(lambda: model.batcher.running == 1)  # of two rows
    other = Request(text_input="a", max_tokens=2, share="two")
    model.execute([other])
    assert other.sender.final.wait(30) and "text_output" in other.sender.responses[-1].values()
    late = endless(share="one")
    model.execute([late, late])
    code, message = ended(late)
    assert code == pb_utils.TritonError.UNAVAILABLE and "the queue is full for this share: 20 of" in message
    model.finalize()


def test_a_probe_is_answered_at_once_where_the_queue_is_full(arguments: dict[str, str]) -> None:
    model = opened(arguments, queue=2)
    idle, off = Request(probe=True), Request(probe=False, text_input="a", max_tokens=1)
    before = model.outbox.tokens
    for request in (idle, off):  # a token each
        model.execute([request])
        assert request.sender.final.wait(30)
    until(lambda: model.outbox.tokens == before + 2)
    requests = [endless() for _ in range(2)]
    model.execute(requests)
    until(lambda: model.batcher.running == 2)
    probe = Request(probe=True)
    model.execute([endless(), endless(), probe])
    assert probe.sender.final.wait(30)
    (answer,) = probe.sender.responses
    assert answer.values() == {"text_output": "busy: 2 requests run, 2 wait"}
    assert not any(request.sender.final.is_set() for request in requests)
    model.finalize()


def test_a_probe_says_where_a_pass_never_ends(
    arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(arguments)
    goes_on, forward = threading.Event(), model.runner.forward
    monkeypatch.setattr(generate_model, "STUCK", 0.5)

    def hangs(*arguments: Any, **options: Any) -> Any:
        goes_on.wait(30)
        return forward(*arguments, **options)

    monkeypatch.setattr(model.runner, "forward", hangs)
    model.execute([Request(text_input="a", max_tokens=3)])
    until(lambda: model.batcher.silence > 1)
    probe = Request(probe=True)
    model.execute([probe])
    code, message = ended(probe)
    assert code == pb_utils.TritonError.INTERNAL
    assert message == "stuck: the batch gave no sign of life for 1 s"
    goes_on.set()
    until(lambda: not model.batcher.busy)
    again = Request(probe=True)
    model.execute([again])
    assert again.sender.final.wait(30) and again.sender.responses[-1].error is None
    model.finalize()


def test_a_batcher_that_idles_is_not_stuck(arguments: dict[str, str]) -> None:
    model = opened(arguments)
    model.batcher.beat -= 1000
    until(lambda: model.batcher.silence < 1)
    model.finalize()


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose tokenizer has a token that the embedding lacks."""
    with serving.within(tmp_path_factory.mktemp("lacking")) as folder:
        repo = Path("engines/triton").resolve()
        ship.ship(serving.project_of_unknown_token(folder), repo)
        return repo


GOOD = [f"the time {number}" for number in range(20)]
BAD = f"hello {serving.UNKNOWN} you"
BOMBS = {
    "an unknown token": ({"text_input": BAD}, "INVALID_ARG", "<|im_start|>'"),
    "one in a chat": ({"messages": '[{"role": "user", "content": "hi"}]'}, "INVALID_ARG", "id 300"),
    "nested JSON": ({"messages": "[" * 100_000}, "INVALID_ARG", "recursion"),
    "no truth value": ({"text_input": "a", "ignore_eos": "false"}, "INVALID_ARG", "ignore_eos is 'false'"),
    "no whole number": ({"text_input": "a", "max_tokens": 3.7}, "INVALID_ARG", "max_tokens is 3.7"),
    "a number that is none": (
        {"text_input": "a", "temperature": float("nan")},
        "INVALID_ARG",
        "temperature nan",
    ),
}


def in_lacking(arguments: dict[str, str], lacking: Path, rows: int) -> TritonPythonModel:
    config = json.loads(arguments["model_config"])
    config["parameters"] |= {name: {"string_value": str(rows)} for name in ("rows", "queue")}
    name = "lacks-base_generate"
    model = TritonPythonModel()
    places = {"model_repository": str(lacking / name), "model_name": name, "model_config": json.dumps(config)}
    model.initialize({**arguments, **places})
    return model


@pytest.mark.parametrize("bomb", BOMBS)
def test_one_bad_request_ends_alone(bomb: str, lacking: Path, arguments: dict[str, str]) -> None:
    """All come in one call of `execute`, the bad one in their midst."""
    fields, code, message = BOMBS[bomb]
    model = in_lacking(arguments, lacking, rows=8)
    version = repository.newest(repository.read(lacking))["lacks-base"][1]
    good = [Request(text_input=text, max_tokens=12, ignore_eos=True) for text in GOOD[:4]]
    prompt = {name: fields[name] for name in ("text_input", "messages") if name in fields}
    bad = Request({name: value for name, value in fields.items() if name not in prompt}, **prompt)
    model.execute([*good[:2], bad, *good[2:]])
    assert all(request.sender.final.wait(30) for request in [*good, bad])
    with checks.open_graph(lacking, version) as runner:
        for text, request in zip(GOOD, good, strict=False):
            expected = checks.direct(runner, model.prompts, text, Sampling(max_tokens=12, ignore_eos=True))
            assert [response.values() for response in request.sender.responses] == [{"text_output": expected}]
    (response,) = bad.sender.responses
    assert response.error.code == getattr(pb_utils.TritonError, code) and message in response.error.message()
    model.finalize()


def test_what_the_runner_refuses_ends_alone(
    lacking: Path, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository of 0.1 says no rows, and logits may be wider: then the graph's own Gather refuses."""
    model = in_lacking(arguments, lacking, rows=8)
    monkeypatch.setattr(type(model.runner), "vocabulary", property(lambda _: 1 << 20))
    model.prompts = Prompts(model.prompts.tokenizer, Conventions(serving.WINDOW))
    good = [Request(text_input=text, max_tokens=40, ignore_eos=True) for text in GOOD[:3]]
    bad = [Request(text_input=BAD, max_tokens=8) for _ in range(4)]
    model.execute([good[0], bad[0], good[1]])
    model.execute([bad[1], good[2], *bad[2:]])
    assert all(request.sender.final.wait(30) for request in [*good, *bad])
    for text, request in zip(GOOD, good, strict=False):
        sampling = Sampling(max_tokens=40, ignore_eos=True)
        expected = checks.direct(model.runner, model.prompts, text, sampling)
        assert [response.values() for response in request.sender.responses] == [{"text_output": expected}]
    for request in bad:
        (response,) = request.sender.responses
        assert response.error.code == pb_utils.TritonError.INTERNAL
        assert response.error.message().startswith("the text could not be written: ")
        assert "out of data bounds" in response.error.message()
    model.finalize()


@pytest.mark.triton
@pytest.mark.slow
def test_twenty_texts_beside_a_client_that_sends_unknown_tokens(lacking: Path) -> None:
    """Four at a time, over HTTP: 20 of 20 with the texts that they have without the other client."""
    serving.triton()
    stop, refusals = threading.Event(), list[tuple[int, str]]()
    with soak.served(lacking) as running:
        url = f"{running.http}/v2/models/lacks-base_generate/generate"

        def good(text: str) -> tuple[int, Any]:
            return http.post(url, {"text_input": text, "max_tokens": 200, "ignore_eos": True})

        def nuisance() -> None:
            while not stop.is_set():
                status, answer = http.post(url, {"text_input": BAD, "max_tokens": 8})
                refusals.append((status, answer["error"]))

        with ThreadPoolExecutor(4) as pool:
            alone = list(pool.map(good, GOOD))
        thread = threading.Thread(target=nuisance)
        thread.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                beside = list(pool.map(good, GOOD))
        finally:
            stop.set()
            thread.join()
    assert [status for status, _ in beside] == [200] * 20 and beside == alone
    assert len({answer["text_output"] for _, answer in alone}) > 10
    assert refusals and all(status == 400 and "id 300" in message for status, message in refusals)


def test_what_was_not_shipped_is_not_opened(repo: Path, arguments: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "repo"
    shutil.copytree(repo, copy)
    data = copy / BASE / "1/model.onnx/model.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    arguments["model_repository"] = str(copy / f"{BASE}_generate")
    with pytest.raises(pb_utils.TritonModelException, match=r"model\.data is not what was shipped"):
        TritonPythonModel().initialize(arguments)
    data.unlink()
    with pytest.raises(pb_utils.TritonModelException, match=r"model\.data"):
        TritonPythonModel().initialize(arguments)


@pytest.mark.triton
@pytest.mark.slow
def test_streams_over_http_and_grpc(healthy: Served) -> None:
    whole = healthy.direct(BASE, PROMPTS[0], max_tokens=20)
    pieces = healthy.streamed(BASE, PROMPTS[0], max_tokens=20)
    assert "".join(pieces) == whole and len(pieces) > 1
    fields = {"text_input": PROMPTS[0], "max_tokens": 20, "stream": True}
    pieces = list(text_model.stream(healthy.server.grpc, f"{BASE}_generate", fields))
    assert "".join(pieces) == whole and len(pieces) > 1


@pytest.mark.triton
@pytest.mark.slow
def test_sixteen_streams_of_mixed_lengths_are_as_alone(healthy: Served) -> None:
    """They join and leave one batch; each gets the tokens that it gets alone."""
    requests = [(PROMPTS[k % 8], 4 + 5 * k) for k in range(16)]
    alone = [healthy.direct(BASE, text, max_tokens=length, ignore_eos=True) for text, length in requests]
    before = healthy.metric("pipeline_generated_tokens_total", BASE)

    def run(request: tuple[str, int]) -> str:
        return "".join(healthy.streamed(BASE, request[0], max_tokens=request[1], ignore_eos=True))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(run, requests)) == alone
    written = healthy.metric("pipeline_generated_tokens_total", BASE) - before
    assert written == sum(length for _, length in requests)


@pytest.mark.triton
@pytest.mark.slow
def test_sampling_is_seeded_and_the_same_as_in_process(healthy: Served) -> None:
    """The fields may stand in the body, or as vLLM's parameters."""
    fields = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 7, "max_tokens": 16}
    fields["repetition_penalty"] = 1.2
    text = healthy.generate(BASE, PROMPTS[2], **fields)
    assert text == healthy.generate(BASE, PROMPTS[2], **fields) == healthy.direct(BASE, PROMPTS[2], **fields)
    assert text == healthy.generate(BASE, PROMPTS[2], parameters={**fields})
    assert text != healthy.generate(BASE, PROMPTS[2], **{**fields, "seed": 8})


@pytest.mark.triton
@pytest.mark.slow
def test_fields_of_the_answer(healthy: Served) -> None:
    whole = healthy.generate(BASE, PROMPTS[3], max_tokens=24)
    stop = whole[6:9]
    body = {
        "text_input": PROMPTS[3],
        "max_tokens": 24,
        "stop_words": [stop, "§"],
        "exclude_input_in_output": False,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    status, answer = http.post(healthy.url(BASE), body)
    assert status == 200 and answer["text_output"] == PROMPTS[3] + whole[: whole.find(stop)]
    assert answer["finish_reason"] == "stop"
    assert answer["num_input_tokens"] == len(healthy.prompts.encode(PROMPTS[3]))
    assert 0 < answer["num_output_tokens"] <= 24


@pytest.mark.triton
@pytest.mark.slow
def test_chat(healthy: Served) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the time?"}]
    status, answer = http.post(healthy.url(BASE), {"messages": json.dumps(messages), "max_tokens": 9})
    assert status == 200
    assert answer["text_output"] == healthy.direct(BASE, healthy.prompts.render(messages), max_tokens=9)


@pytest.mark.triton
@pytest.mark.slow
def test_a_template_that_does_not_end_fails_its_own_request_alone(healthy: Served) -> None:
    messages = [{"role": "user", "content": "for ever"}]
    status, answer = http.post(healthy.url(BASE), {"messages": json.dumps(messages), "max_tokens": 9})
    assert status == 400 and "takes over 2 s" in answer["error"]
    messages[0]["content"] = "the time?"
    status, answer = http.post(healthy.url(BASE), {"messages": json.dumps(messages), "max_tokens": 9})
    assert status == 200 and answer["text_output"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"max_tokens": 3}, 400, "exactly one of text_input and messages is needed"),
        ({"text_input": ""}, 400, "the prompt is empty"),
        ({"text_input": "a " * 5000, "max_tokens": 4}, 400, "together the context holds 4096"),
        ({"text_input": "a", "max_tokens": 10_000}, 400, "together the context holds 4096"),
        ({"text_input": "a", "max_tokens": -1}, 400, "max_tokens -1 is not between 1 and"),
        ({"text_input": "a", "max_tokens": 0}, 400, "max_tokens 0 is not between 1 and"),
        (b'{"text_input": "a", "temperature": NaN}', 400, "temperature nan is not between 0 and 100"),
        ({"text_input": "a", "temperature": 1e39}, 400, "temperature inf is not between 0 and 100"),
        ({"text_input": "a", "top_p": 0}, 400, "top_p 0.0 is not above 0"),
        ({"text_input": "a", "max_token": 3}, 400, "there is no field 'max_token'"),
        ({"text_input": "a", "stop_words": [""]}, 400, "a stop string is empty"),
        ({"messages": "no json"}, 400, "messages is not JSON"),
        ({"messages": '[{"role": "robot", "content": "x"}]'}, 400, "messages[0] is not a role"),
        ({"text_input": ["a", "b"]}, 400, "batch-size must be <= 1"),
        # 500 is Triton's own choice for what it cannot parse.
        ({"text_input": 5}, 500, "Unable to parse JSON bytes array"),
        ({"text_input": "a", "max_tokens": "x"}, 500, "Unable to parse 'data'"),
        (b'{"text_input": ', 500, "failed to parse the request JSON buffer"),
        (
            {"text_input": "a b " * 2_500_000},
            400,
            "the prompt of 10,000,000 bytes is longer than the context",
        ),
    ],
)
@pytest.mark.triton
@pytest.mark.slow
def test_bad_input_gets_a_clear_error(healthy: Served, body: Any, status: int, message: str) -> None:
    received, answer = http.post(healthy.url(BASE), body)
    assert received == status and message in answer["error"], (received, str(answer)[:300])


@pytest.mark.triton
@pytest.mark.slow
def test_unknown_models_tensors_and_types(healthy: Served) -> None:
    status, answer = http.post(healthy.url("nobody"), {"text_input": "a"})
    assert status == 404 or "unknown model" in str(answer)
    for field, message in (
        ({"texts": "b"}, "unexpected inference input 'texts'"),
        ({"top_k": 1.5}, "data-type"),
    ):
        with pytest.raises(RuntimeError, match=message):
            list(text_model.stream(healthy.server.grpc, f"{BASE}_generate", {"text_input": "a", **field}))


@contextmanager
def long_request(
    served: Served, model: str, tokens: int = 4000
) -> Iterator[grpcclient.InferenceServerClient]:
    """A stream over gRPC that writes until it is cancelled; its first response is there."""
    responses: queue.Queue[Any] = queue.Queue()
    fields = {"text_input": "the time", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    with grpcclient.InferenceServerClient(served.server.grpc) as triton:
        triton.start_stream(lambda result, error: responses.put((result, error)))
        inputs = text_model.tensors(fields)
        triton.async_stream_infer(f"{model}_generate", inputs, enable_empty_final_response=True)
        assert responses.get(timeout=30)[1] is None
        yield triton


@pytest.mark.triton
@pytest.mark.slow
def test_a_cancelled_request_makes_room(healthy: Served) -> None:
    """The narrow model runs one at a time: a second request starts when the first is cancelled."""
    before = healthy.metric("pipeline_generated_tokens_total", NARROW)
    with long_request(healthy, NARROW) as triton:
        triton.stop_stream(cancel_requests=True)
        text = healthy.generate(NARROW, "people", max_tokens=3)
        assert text == healthy.direct(NARROW, "people", max_tokens=3)
        until(lambda: healthy.metric("pipeline_running_requests", NARROW) == 0)
        assert healthy.metric("pipeline_generated_tokens_total", NARROW) - before < 4000


@pytest.mark.triton
@pytest.mark.slow
def test_a_client_that_hangs_up_makes_room(healthy: Served) -> None:
    body = {"text_input": "the time", "max_tokens": 4000, "stream": True, "ignore_eos": True}
    before = healthy.metric("pipeline_generated_tokens_total", NARROW)
    events = http.stream(healthy.url(NARROW, "generate_stream"), body)
    next(events)
    events.close()
    until(lambda: healthy.metric("pipeline_running_requests", NARROW) == 0)
    assert healthy.metric("pipeline_generated_tokens_total", NARROW) - before < 4000


@pytest.mark.triton
@pytest.mark.slow
def test_a_full_queue_refuses_and_loses_nothing(healthy: Served) -> None:
    """One runs, two wait, the fourth is refused; the three get their whole texts."""
    with long_request(healthy, NARROW) as triton, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(healthy.generate, NARROW, text, max_tokens=5) for text in PROMPTS[:2]]
        until(lambda: healthy.metric("pipeline_waiting_requests", NARROW) == 2)
        status, answer = http.post(healthy.url(NARROW), {"text_input": "a", "max_tokens": 1})
        # Triton 24.10's generate makes 400 of every error of a model; this one is UNAVAILABLE.
        assert status == 400
        assert "the queue is full: 2 requests wait; try again later" in answer["error"]
        triton.stop_stream(cancel_requests=True)
        texts = [future.result(timeout=60) for future in waiting]
    assert texts == [healthy.direct(NARROW, text, max_tokens=5) for text in PROMPTS[:2]]
