"""The real Triton server on what `pipeline ship` wrote: one server for all tests of this file, on the CPU."""

from __future__ import annotations

import json
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.runtime.runner import Runner
from pipeline.ship import ship
from pipeline.ship.openai_front import Front
from pipeline.ship.triton import checks, repository
from pipeline.ship.triton.server import Ports, Server
from tests import serving
from tests.serving import until

pytestmark = [pytest.mark.triton, pytest.mark.slow]
BASE, CUT, NARROW = "tiny-base", "tiny-attn2-3", "narrow"
PROMPTS = [
    "the time", "a way to see the world in a day", "people", "work and life and the place of the hand in the eye of the child",
    "point", "number of the week", "case", "woman and man " * 12,
]  # fmt: skip


@dataclass
class Served:
    """The server, its repository, and the same graphs run directly."""

    server: Server
    repo: Path
    runners: dict[str, Runner]
    prompts: Prompts

    def url(self, model: str, what: str = "generate") -> str:
        return f"{self.server.http}/v2/models/{model}_generate/{what}"

    def generate(self, model: str, text: str, **fields: Any) -> str:
        status, answer = checks.post(self.url(model), {"text_input": text, **fields})
        assert status == 200 and "text_output" in answer, answer
        return answer["text_output"]

    def direct(self, model: str, text: str, **fields: Any) -> str:
        return checks.direct(self.runners[model], self.prompts, text, Sampling(**fields))

    def metric(self, name: str, model: str) -> float:
        text = urllib.request.urlopen(self.server.metrics).read().decode()
        return float(re.search(rf'^{name}{{model="{model}_generate"}} (\S+)', text, re.M)[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Base and a variant side by side, and the variant once more with one row and a queue of two."""
    wheel = serving.triton()
    with serving.within(tmp_path_factory.mktemp("triton")):
        graphs = serving.project(Path.cwd())
        repo = Path("engines/triton").resolve()
        ship.ship(graphs, repo)
        manifest = ship.ship(graphs[1:], repo, name=NARROW, settings=ship.Settings(rows=1, queue=2))
        runners = {}
        for name, (_, told) in repository.newest(manifest).items():
            path = repo / told["graph"]
            runners[name] = OnnxRunner(path, open_session(path, path.parent))
        prompts = Prompts.load(repo / f"{BASE}_generate" / "1")
        with Server(wheel, repo, repository.served(manifest), Ports(0, 0, 0)) as server:
            yield Served(server, repo, runners, prompts)


@pytest.fixture
def healthy(served: Served) -> Iterator[Served]:
    """After the test the server is healthy, every text model answers, and nothing runs on."""
    yield served
    assert served.server.is_healthy()
    for model in (BASE, CUT, NARROW):
        assert checks.answers(served.server.http, f"{model}_generate") is None


# ---- the same as the graph run directly -----------------------------------------------------------------------------


def test_every_check_of_the_smoke_run_passes(healthy: Served) -> None:
    found = list(
        checks.examine(healthy.repo, repository.read(healthy.repo), healthy.server.http, healthy.server.grpc)
    )
    assert len(found) == 3 * 6 and all(check.passed for check in found), [check.line() for check in found]


@pytest.mark.parametrize(("protocol", "client"), [("http", httpclient), ("grpc", grpcclient)])
@pytest.mark.parametrize("model", [BASE, CUT])
def test_tensors_over_both_protocols(healthy: Served, protocol: str, client: Any, model: str) -> None:
    """Logits and cache of a padded batch with a past, equal to the direct run; prefill on an empty cache too."""
    runner = healthy.runners[model]
    ids, mask = np.arange(3, 15).reshape(2, 6), np.array([[0, 0, 1, 1, 1, 1], [1] * 6])
    first = runner.feeds(ids, attention_mask=mask)
    _, cache = runner.forward(ids, attention_mask=mask)
    second = runner.feeds(np.array([[7], [9]]), cache, np.concatenate([mask, np.ones((2, 1), int)], axis=1))
    address = healthy.server.http.removeprefix("http://") if protocol == "http" else healthy.server.grpc
    with client.InferenceServerClient(address) as triton:
        for feeds in (first, second):
            tensors = []
            for name, array in feeds.items():
                tensor = client.InferInput(name, list(array.shape), client.np_to_triton_dtype(array.dtype))
                tensor.set_data_from_numpy(array)
                tensors.append(tensor)
            answer, expected = triton.infer(model, tensors), runner.infer(feeds)
            for name in runner.outputs:
                np.testing.assert_allclose(answer.as_numpy(name), expected[name], atol=1e-5)


def test_equal_shapes_run_together(healthy: Served) -> None:
    """Sixteen concurrent requests of one shape need fewer executions than requests."""
    runner, ids = healthy.runners[BASE], np.arange(3, 60)[None]

    def ask(_: int) -> None:
        with httpclient.InferenceServerClient(healthy.server.http.removeprefix("http://")) as triton:
            tensors = []
            for name, array in runner.feeds(ids).items():
                tensor = httpclient.InferInput(
                    name, list(array.shape), httpclient.np_to_triton_dtype(array.dtype)
                )
                tensor.set_data_from_numpy(array)
                tensors.append(tensor)
            triton.infer(BASE, tensors, outputs=[httpclient.InferRequestedOutput("logits")])

    with httpclient.InferenceServerClient(healthy.server.http.removeprefix("http://")) as triton:
        before = triton.get_inference_statistics(BASE)["model_stats"][0]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, range(48)))
        after = triton.get_inference_statistics(BASE)["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 48
    assert after["execution_count"] - before["execution_count"] < 48


def test_two_variants_side_by_side(healthy: Served) -> None:
    texts = {model: healthy.generate(model, PROMPTS[1], max_tokens=24) for model in (BASE, CUT)}
    assert texts == {model: healthy.direct(model, PROMPTS[1], max_tokens=24) for model in (BASE, CUT)}
    assert texts[BASE] != texts[CUT]


def test_streams_over_http_and_grpc(healthy: Served) -> None:
    whole = healthy.direct(BASE, PROMPTS[0], max_tokens=20)
    events = list(
        checks.stream(
            healthy.url(BASE, "generate_stream"), {"text_input": PROMPTS[0], "max_tokens": 20, "stream": True}
        )
    )
    assert "".join(event["text_output"] for event in events) == whole and len(events) > 1
    assert (
        "".join(
            checks.grpc_stream(
                healthy.server.grpc, f"{BASE}_generate", PROMPTS[0], {"max_tokens": 20, "stream": True}
            )
        )
        == whole
    )


def test_sixteen_streams_of_mixed_lengths_are_as_alone(healthy: Served) -> None:
    """They join and leave one batch; each gets the tokens that it gets alone."""
    asked = [(PROMPTS[k % 8], 4 + 5 * k) for k in range(16)]
    alone = [healthy.direct(BASE, text, max_tokens=length, ignore_eos=True) for text, length in asked]
    steps = healthy.metric("pipeline_generated_tokens_total", BASE)

    def run(one: tuple[str, int]) -> str:
        body = {"text_input": one[0], "max_tokens": one[1], "stream": True, "ignore_eos": True}
        return "".join(
            event["text_output"] for event in checks.stream(healthy.url(BASE, "generate_stream"), body)
        )

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(run, asked)) == alone
    assert healthy.metric("pipeline_generated_tokens_total", BASE) - steps == sum(
        length for _, length in asked
    )


# ---- what a request may ask for -------------------------------------------------------------------------------------


def test_fields(healthy: Served) -> None:
    """Sampling is seeded and the same as in process; stop words are cut; the fields of TensorRT-LLM and of vLLM's parameters."""
    drawn = {
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.9,
        "seed": 7,
        "max_tokens": 16,
        "repetition_penalty": 1.2,
    }
    text = healthy.generate(BASE, PROMPTS[2], **drawn)
    assert text == healthy.generate(BASE, PROMPTS[2], **drawn) == healthy.direct(BASE, PROMPTS[2], **drawn)
    assert text == healthy.generate(BASE, PROMPTS[2], parameters={**drawn})
    assert text != healthy.generate(BASE, PROMPTS[2], **{**drawn, "seed": 8})
    whole = healthy.generate(BASE, PROMPTS[3], max_tokens=24)
    stop = whole[6:9]
    status, answer = checks.post(
        healthy.url(BASE),
        {
            "text_input": PROMPTS[3], "max_tokens": 24, "stop_words": [stop, "§"], "exclude_input_in_output": False,
            "return_finish_reason": True, "return_num_input_tokens": True, "return_num_output_tokens": True,
        },
    )  # fmt: skip
    assert status == 200 and answer["text_output"] == PROMPTS[3] + whole[: whole.find(stop)]
    assert answer["finish_reason"] == "stop" and answer["num_input_tokens"] == len(
        healthy.prompts.encode(PROMPTS[3])
    )
    assert 0 < answer["num_output_tokens"] <= 24


def test_chat(healthy: Served) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the time?"}]
    status, answer = checks.post(healthy.url(BASE), {"messages": json.dumps(messages), "max_tokens": 9})
    assert status == 200
    assert answer["text_output"] == healthy.direct(BASE, healthy.prompts.render(messages), max_tokens=9)


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
        (
            {"text_input": 5},
            500,
            "Unable to parse JSON bytes array",
        ),  # 500 is Triton's own choice for what it cannot parse
        ({"text_input": "a", "max_tokens": "x"}, 500, "Unable to parse 'data'"),
        (b'{"text_input": ', 500, "failed to parse the request JSON buffer"),
        (
            {"text_input": "a b " * 2_500_000},
            400,
            "the prompt of 10,000,000 bytes is longer than the context",
        ),
    ],
)
def test_bad_input_gets_a_clear_error(healthy: Served, body: Any, status: int, message: str) -> None:
    got, answer = checks.post(healthy.url(BASE), body)
    assert got == status and message in answer["error"], (got, str(answer)[:300])


def test_unknown_models_tensors_and_types(healthy: Served) -> None:
    assert checks.post(healthy.url("nobody"), {"text_input": "a"})[0] == 404 or "unknown model" in str(
        checks.post(healthy.url("nobody"), {"text_input": "a"})
    )
    with pytest.raises(RuntimeError, match="unexpected inference input 'texts'"):
        list(checks.grpc_stream(healthy.server.grpc, f"{BASE}_generate", "a", {"texts": "b"}))
    with pytest.raises(RuntimeError, match="data-type"):
        list(checks.grpc_stream(healthy.server.grpc, f"{BASE}_generate", "a", {"max_tokens": 1.5}))


# ---- leaving, waiting, coming back ----------------------------------------------------------------------------------


def long_request(
    served: Served, model: str, came: queue.Queue[Any], tokens: int = 4000
) -> grpcclient.InferenceServerClient:
    """A stream over gRPC that writes until it is cancelled."""
    triton = grpcclient.InferenceServerClient(served.server.grpc)
    triton.start_stream(lambda result, error: came.put((result, error)))
    inputs = []
    for name, kind, value in (
        ("text_input", "BYTES", np.array([[b"the time"]], np.object_)), ("max_tokens", "INT32", np.array([[tokens]], np.int32)),
        ("stream", "BOOL", np.array([[True]])), ("ignore_eos", "BOOL", np.array([[True]])),
    ):  # fmt: skip
        inputs.append(grpcclient.InferInput(name, [1, 1], kind))
        inputs[-1].set_data_from_numpy(value)
    triton.async_stream_infer(f"{model}_generate", inputs, enable_empty_final_response=True)
    return triton


def test_a_cancelled_request_makes_room(healthy: Served) -> None:
    """The narrow model runs one at a time: a second request gets its turn when the first is cancelled, long before its end."""
    came: queue.Queue[Any] = queue.Queue()
    before = healthy.metric("pipeline_generated_tokens_total", NARROW)
    triton = long_request(healthy, NARROW, came)
    assert came.get(timeout=30)[1] is None
    triton.stop_stream(cancel_requests=True)
    assert healthy.generate(NARROW, "people", max_tokens=3) == healthy.direct(NARROW, "people", max_tokens=3)
    until(lambda: healthy.metric("pipeline_running_requests", NARROW) == 0)
    assert healthy.metric("pipeline_generated_tokens_total", NARROW) - before < 4000
    triton.close()


def test_a_client_that_hangs_up_makes_room(healthy: Served) -> None:
    body = {"text_input": "the time", "max_tokens": 4000, "stream": True, "ignore_eos": True}
    before = healthy.metric("pipeline_generated_tokens_total", NARROW)
    events = checks.stream(healthy.url(NARROW, "generate_stream"), body)
    next(events)
    events.close()
    until(lambda: healthy.metric("pipeline_running_requests", NARROW) == 0)
    assert healthy.metric("pipeline_generated_tokens_total", NARROW) - before < 4000


def test_a_full_queue_refuses_and_loses_nothing(healthy: Served) -> None:
    """One runs, two wait, the fourth is told to come again; the three get their whole texts."""
    came: queue.Queue[Any] = queue.Queue()
    triton = long_request(healthy, NARROW, came)
    came.get(timeout=30)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(healthy.generate, NARROW, text, max_tokens=5) for text in PROMPTS[:2]]
        until(lambda: healthy.metric("pipeline_waiting_requests", NARROW) == 2)
        status, answer = checks.post(healthy.url(NARROW), {"text_input": "a", "max_tokens": 1})
        assert (
            status == 400
        )  # what Triton 24.10's generate makes of every error of a model; this one is UNAVAILABLE
        assert "the queue is full: 2 requests wait; try again later" in answer["error"]
        triton.stop_stream(cancel_requests=True)
        texts = [future.result(timeout=60) for future in waiting]
    assert texts == [healthy.direct(NARROW, text, max_tokens=5) for text in PROMPTS[:2]]
    triton.close()


def test_unload_and_load(healthy: Served) -> None:
    """Requests in flight at an unload end with a result or an error; after a load the model answers as before."""
    expected = healthy.direct(CUT, PROMPTS[1], max_tokens=8)
    with httpclient.InferenceServerClient(healthy.server.http.removeprefix("http://")) as triton:
        for model in (CUT, f"{CUT}_generate"):
            triton.unload_model(model)
            until(lambda model=model: not triton.is_model_ready(model))
        assert "text_output" not in checks.post(healthy.url(CUT), {"text_input": "a"})[1]
        for model in (CUT, f"{CUT}_generate"):
            triton.load_model(model)
    assert healthy.generate(CUT, PROMPTS[1], max_tokens=8) == expected


# ---- OpenAI ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(healthy: Served) -> Iterator[openai.OpenAI]:
    models = [f"{name}_generate" for name in (BASE, CUT, NARROW)]
    with (
        Front(healthy.server.grpc, models, "127.0.0.1", 0) as front,
        openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_openai_completions(healthy: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [BASE, CUT, NARROW]
    assert client.models.retrieve(CUT).id == CUT
    whole = healthy.direct(BASE, PROMPTS[0], max_tokens=12)
    made = client.completions.create(model=BASE, prompt=PROMPTS[0], max_tokens=12, temperature=0)
    assert made.choices[0].text == whole and made.choices[0].finish_reason == "length"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (
        len(healthy.prompts.encode(PROMPTS[0])),
        12,
    )
    both = client.completions.create(model=BASE, prompt=PROMPTS[:2], max_tokens=4, temperature=0, echo=True)
    assert [choice.text for choice in both.choices] == [
        p + healthy.direct(BASE, p, max_tokens=4) for p in PROMPTS[:2]
    ]
    events = list(
        client.completions.create(model=BASE, prompt=PROMPTS[0], max_tokens=12, temperature=0, stream=True)
    )
    assert (
        "".join(event.choices[0].text for event in events) == whole
        and events[-1].choices[0].finish_reason == "length"
    )
    stop = whole[4:7]
    cut = client.completions.create(model=BASE, prompt=PROMPTS[0], max_tokens=12, temperature=0, stop=stop)
    assert cut.choices[0].text == whole[: whole.find(stop)] and cut.choices[0].finish_reason == "stop"
    drawn = [
        client.completions.create(model=BASE, prompt="a", max_tokens=12, seed=5).choices[0].text
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] == healthy.direct(BASE, "a", max_tokens=12, seed=5, temperature=1)


def test_openai_chat(healthy: Served, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "the time?"}]}]
    expected = healthy.direct(
        CUT, healthy.prompts.render([{"role": "user", "content": "the time?"}]), max_tokens=10
    )
    made = client.chat.completions.create(
        model=CUT, messages=messages, max_completion_tokens=10, temperature=0
    )
    assert made.choices[0].message.content == expected and made.usage.completion_tokens == 10
    events = list(
        client.chat.completions.create(
            model=CUT,
            messages=messages,
            max_tokens=10,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(event.choices[0].delta.content for event in events[:-1]) == expected
    assert (
        events[0].choices[0].delta.role == "assistant"
        and events[-1].usage == made.usage
        and not events[-1].choices
    )


@pytest.mark.parametrize(
    ("arguments", "error", "status", "code", "message"),
    [
        (
            {"model": "gpt-9"},
            openai.NotFoundError,
            404,
            "model_not_found",
            "The model 'gpt-9' does not exist",
        ),
        ({"max_tokens": -1}, openai.BadRequestError, 400, None, "max_tokens -1"),
        ({"max_tokens": 1 << 40}, openai.BadRequestError, 400, None, "out of range"),
        (
            {"max_tokens": 5000},
            openai.BadRequestError,
            400,
            "context_length_exceeded",
            "the context holds 4096",
        ),
        ({"n": 2}, openai.BadRequestError, 400, None, "n must be 1"),
        ({"logprobs": 2}, openai.BadRequestError, 400, None, "'logprobs' is not supported"),
        ({"prompt": ""}, openai.BadRequestError, 400, None, "the prompt is empty"),
        ({"prompt": []}, openai.BadRequestError, 400, None, "prompt is an empty list"),
        ({"temperature": "hot"}, openai.BadRequestError, 400, None, "temperature"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, 400, None, "'colour' is not supported"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_openai_errors(
    client: openai.OpenAI, arguments: Any, error: Any, status: int, code: Any, message: str, stream: bool
) -> None:
    """As HTTP errors in the API's form, also where a stream was asked for."""
    with pytest.raises(error) as caught:
        list(client.completions.create(**{"model": BASE, "prompt": "a", "stream": stream, **arguments}))
    assert caught.value.status_code == status and caught.value.code == code and message in str(caught.value)


def test_openai_overload_and_hang_up(healthy: Served, client: openai.OpenAI) -> None:
    """A full queue is a 503; streams that the client leaves are cancelled in the model."""
    streams = []
    for _ in range(3):
        body: Any = {
            "model": NARROW,
            "prompt": "the time",
            "max_tokens": 4000,
            "stream": True,
            "extra_body": {"ignore_eos": True},
        }
        if not streams:
            streams.append(client.completions.create(**body))
            next(iter(streams[0]))
        else:
            threading.Thread(
                target=lambda body=body: streams.append(client.completions.create(**body)), daemon=True
            ).start()
    until(lambda: healthy.metric("pipeline_waiting_requests", NARROW) == 2)
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=NARROW, prompt="a")
    assert caught.value.status_code == 503 and caught.value.code == "overloaded"
    streams[0].close()
    until(lambda: len(streams) == 3)
    for stream in streams:
        stream.close()
    until(lambda: healthy.metric("pipeline_running_requests", NARROW) == 0)
