"""The gate before a server that answers as Triton does: what passes, what ends, what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from pipeline.ship.ports import bound
from pipeline.ship.triton import gate, http
from pipeline.ship.web.guard import Access
from pipeline.ship.web.model_states import STOPPING, ModelStates
from tests.serving import until
from tests.web import raw, received, served

JSON = {"Content-Type": "application/json"}
ANSWERS = {
    "full": (400, b'{"error":"the queue is full: 2 requests wait; try again later"}'),
    "killed": (500, b'{"error":"Stub process is unhealthy and it will be restarted."}'),
    "m_generate": (400, b'{"error":"Request for unknown model: \'m_generate\' has no available versions"}'),
    "other": (400, b'{"error":"Request for unknown model: \'other\' has no available versions"}'),
    "wrong": (400, b'{"error":"max_tokens must be positive"}'),
    "odd": (500, b"[1"),
    "streamed": (400, b'data: {"error":"the queue is full: 2 requests wait"}\n\n'),
    "unread": (500, b'{"error":"failed to parse the request JSON buffer: Invalid value. at 1"}'),
}


@dataclass
class FakeTriton:
    """Keeps the requests; a model named in ANSWERS answers so, others stream, wait or echo."""

    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    running: int = 0
    hung_up: int = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        target = scope["raw_path"].decode() + ("?" if scope["query_string"] else "")
        target += scope["query_string"].decode()
        self.requests.append((scope["method"], target, headers, body))
        model = (scope["path"].split("/") + [""] * 4)[3]
        status, answer = ANSWERS.get(model, (200, body))
        head = [(b"content-type", b"application/json"), (b"inference-header-content-length", b"7")]
        is_endless = model == "endless" or b"endless" in body
        head += [] if is_endless else [(b"content-length", b"%d" % len(answer))]
        if model == "dead":
            await self._wait(receive)
            return
        await send({"type": "http.response.start", "status": status, "headers": head})
        if is_endless:
            await self._stream(receive, send)
        await send({"type": "http.response.body", "body": answer})

    async def _wait(self, receive) -> None:
        self.running += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        self.running, self.hung_up = self.running - 1, self.hung_up + 1

    async def _stream(self, receive, send) -> None:
        waiting = asyncio.create_task(self._wait(receive))
        while not waiting.done():
            await send(
                {"type": "http.response.body", "body": b'data: {"text_output":"a"}\n\n', "more_body": True}
            )
            await asyncio.sleep(0.05)


@dataclass
class Before:
    """A gate, and what is behind it."""

    url: str
    triton: FakeTriton
    states: ModelStates

    def post(self, model: str, what: str = "generate", body: Any = b"{}", **options: Any) -> httpx.Response:
        url = f"{self.url}/v2/models/{model}/{what}"
        return httpx.post(url, content=body, trust_env=False, timeout=20, **options)


@contextmanager
def gated(seconds: float = 60, access: Access | None = None) -> Iterator[Before]:
    triton, states = FakeTriton(), ModelStates()
    models = ("m", "m_generate")
    listener = bound(0, "--http-port")
    with (
        served(triton) as upstream,
        gate.listening(upstream, models, listener, access or Access(), states, seconds) as url,
    ):
        yield Before(url, triton, states)


@pytest.fixture(scope="module")
def before() -> Iterator[Before]:
    with gated() as before:
        yield before


@pytest.fixture
def last(before: Before):
    before.triton.requests.clear()
    return lambda: before.triton.requests[-1]


def test_requests_and_answers_pass_unchanged(before: Before, last) -> None:
    body = b'{"inputs":[]}' + bytes(range(256)) * 50_000
    headers = {
        "Inference-Header-Content-Length": "13",
        "Content-Type": "application/octet-stream",
        "X-A": "é",
    }
    headers |= {"Authorization": "Bearer of something", "Connection": "close, X-Own", "X-Own": "1"}
    answer = before.post("m", "infer?x=%20y", body, headers={k: v.encode() for k, v in headers.items()})
    method, target, sent, content = last()
    assert (method, target) == ("POST", "/v2/models/m/infer?x=%20y") and content == body == answer.content
    assert sent["inference-header-content-length"] == "13" and sent["x-a"] == "é"
    assert sent["content-type"] == "application/octet-stream" and sent["content-length"] == str(len(body))
    assert "authorization" not in sent and "x-own" not in sent
    assert answer.headers["inference-header-content-length"] == "7"
    assert answer.headers["content-length"] == str(len(body))
    assert httpx.get(f"{before.url}/v2/health/ready").status_code == 200
    assert last()[:2] == ("GET", "/v2/health/ready") and "content-type" not in last()[2]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("application/x-www-form-urlencoded", "application/json"),
        ("Application/X-WWW-Form-Urlencoded; charset=utf-8", "application/json"),
        ("multipart/form-data; boundary=x", "application/json"),
        ("", "application/json"),
        (None, "application/json"),
        ("application/json", "application/json"),
        ("application/octet-stream", "application/octet-stream"),
    ],
)
def test_no_form_reaches_triton(before: Before, last, kind: str | None, expected: str) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert before.post("x", body=b'{"a": 1}', headers=headers).json() == {"a": 1}
    assert last()[2]["content-type"] == expected and last()[3] == b'{"a": 1}'


def test_chunked_bodies_pass(before: Before, last) -> None:
    assert before.post("x", body=iter([b"[1,", b"2]"])).content == b"[1,2]" == last()[3]


@pytest.mark.parametrize("what", ["generate", "infer", "generate_stream", "versions/1/generate"])
@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("full", 503),
        ("killed", 503),
        ("m_generate", 503),
        ("other", 400),
        ("wrong", 400),
        ("odd", 500),
        ("unread", 400),
    ],
)
def test_errors_of_triton(before: Before, what: str, model: str, status: int) -> None:
    answer = before.post(model, what)
    is_of_a_version = model == "m_generate" and what.startswith("versions")  # there may be none of it
    assert answer.status_code == (400 if is_of_a_version else status)
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)
    assert answer.json() == ({"error": "[1"} if model == "odd" else json.loads(ANSWERS[model][1]))


def test_an_error_that_came_as_an_event_is_a_status(before: Before) -> None:
    answer = before.post("streamed", "generate_stream")
    assert answer.status_code == 503 and answer.json() == {"error": "the queue is full: 2 requests wait"}


def test_a_process_that_triton_takes_for_dead_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may merely have got no CPU for a second: whether it is there, the watch knows."""
    dead = "Stub process 'm_generate_0_0' is not healthy."
    monkeypatch.delitem(ANSWERS, "m_generate")
    with gated() as before:
        events = http.stream(f"{before.url}/v2/models/m_generate/generate_stream", {"endless": True})
        assert next(events) == {"text_output": "a"}
        monkeypatch.setitem(ANSWERS, "m_generate", (400, json.dumps({"error": dead}).encode()))
        answer = before.post("m_generate")
        assert answer.status_code == 503 and answer.json() == {"error": dead}
        assert next(events) == {"text_output": "a"} and before.states.reason("m_generate") is None


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/repository/models/m/load", 403),
        ("/v2/repository/any/models/m/load", 403),
        ("/v2/repository/models/m/%6coad", 403),
        ("/v2/models/../repository/models/m/load", 400),
        ("/v2/models/%2e%2e/repository/models/m/load", 400),
        ("/v2//repository/models/m/load", 400),
        ("/v2/./repository/models/m/load", 400),
        ("//v2/repository/models/m/load", 400),
        ("/v2/repository/models/m/load/.", 400),
        ("/v2/repository/models/m/load/%2e", 400),
        ("/v2/repository/models/m/load%2f.", 400),
        ("/v2/repository/models/m/load/x/..", 400),
        ("/v2/repository/models/m/load/", 403),
        ("/v2/repository/models/m/unload", 200),
        ("/v2/repository/index", 200),
    ],
)
def test_no_code_comes_with_a_request(before: Before, path: str, status: int) -> None:
    """Triton runs a model.py that is among the parameters of a load."""
    body = b'{"parameters": {"config": "{}", "file:1/model.py": "cHJpbnQoKQ=="}}'
    before.triton.requests.clear()
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with raw(before.url, head % (path.encode(), len(body)) + body) as connection:
        assert received(connection).startswith(b"HTTP/1.1 %d" % status)
    assert len(before.triton.requests) == (status == 200)


@pytest.mark.parametrize(
    "path",
    [
        "systemsharedmemory/region/r/register", "systemsharedmemory/unregister",
        "cudasharedmemory/region/r/register",
        "logging", "trace/setting", "models/m/trace/setting", "repository/models/m/other",
    ],
)  # fmt: skip
def test_the_server_is_not_set_by_clients(before: Before, path: str) -> None:
    """Shared memory of other processes would be read, and a trace written where the request says."""
    before.triton.requests.clear()
    for method in ("POST", "PUT", "DELETE"):
        answer = httpx.request(method, f"{before.url}/v2/{path}", json={})
        assert answer.status_code == 403 and "gRPC has it" in answer.json()["error"]
    assert not before.triton.requests
    assert httpx.get(f"{before.url}/v2/{path}").status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PATCH"])
def test_methods_that_triton_answers_wrongly_do_not_reach_it(before: Before, method: str) -> None:
    """After HEAD, Triton's body would be what answers the next client's request."""
    before.triton.requests.clear()
    answer = httpx.request(method, f"{before.url}/v2/models/m/infer")
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, POST"
    assert not before.triton.requests


def test_a_plain_load_passes(before: Before, last) -> None:
    for body in (b"", b"{}"):
        url = f"{before.url}/v2/repository/models/m/load"
        assert httpx.post(url, content=body).status_code == 200 and last()[3] == body


def test_what_would_end_triton_does_not_reach_it(before: Before) -> None:
    before.triton.requests.clear()
    shape = b'{"inputs":[{"name":"a","datatype":"INT64","shape":[2147483648,2147483648],"data":[1]}]}'
    assert before.post("m", "infer", shape).status_code == 400
    assert before.post("m", body=b"[" * 200_000).status_code == 400
    two: Any = [("Inference-Header-Content-Length", "2"), ("Inference-Header-Content-Length", "90")]
    assert before.post("m", "infer", b"{}" + shape, headers=two).status_code == 400
    assert not before.triton.requests


def test_compressed_bodies_are_refused(before: Before) -> None:
    answer = before.post("x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415 and answer.json() == {"error": "compressed bodies are not read"}


def test_bodies_and_hosts_are_guarded(before: Before, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY", 1000)
    with gated(access=Access(api_key="sesame")) as own:
        assert own.post("x").status_code == 401
        key = {"Authorization": "Bearer sesame"}
        assert own.post("x", headers={**key, "Host": "evil"}).status_code == 421
        assert own.post("x", body=iter([bytes(900)] * 9), headers=key).status_code == 413
        assert own.post("x", body=bytes(1001), headers=key).json() == {
            "error": "the body has more than 1,000 bytes"
        }
        assert own.post("x", body=b"1" * 1000, headers=key).status_code == 200
        assert httpx.get(f"{own.url}/v2/health/ready").status_code == 200


def test_hangups_reach_triton(before: Before) -> None:
    until(lambda: before.triton.running == 0)
    already = before.triton.hung_up
    events = http.stream(f"{before.url}/v2/models/endless/generate_stream", {})
    assert next(events) == {"text_output": "a"}
    request = b"POST /v2/models/dead/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    with raw(before.url, request):
        until(lambda: before.triton.running == 2)
    events.close()
    until(lambda: before.triton.hung_up == already + 2 and before.triton.running == 0)


def test_two_hundred_streams_at_once(before: Before) -> None:
    streams = [http.stream(f"{before.url}/v2/models/endless/generate_stream", {}) for _ in range(200)]
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(next, streams)) == [{"text_output": "a"}] * 200
    until(lambda: before.triton.running == 200)
    for stream in streams:
        stream.close()
    until(lambda: before.triton.running == 0)


def ended(before: Before, act) -> list[tuple[int, Any]]:
    """How a whole and a streamed answer end that Triton would never give: (status, JSON or events)."""
    results: list[tuple[int, Any]] = [(0, None), (0, None)]

    def whole() -> None:
        response = before.post("dead", "generate")
        assert response.headers["retry-after"] == "5"
        results[0] = response.status_code, response.json()

    def streamed() -> None:
        results[1] = 200, list(http.stream(f"{before.url}/v2/models/endless/generate_stream", {}))

    threads = [threading.Thread(target=target) for target in (whole, streamed)]
    for thread in threads:
        thread.start()
    until(lambda: before.triton.running == 2)
    time.sleep(0.2)
    act()
    for thread in threads:
        thread.join(20)
    until(lambda: before.triton.running == 0)
    return results


def test_what_a_killed_model_never_answers_ends_in_time() -> None:
    with gated(seconds=1) as before:
        whole, (status, events) = ended(before, lambda: None)
        message = "the request was not done after 1 s"
        assert whole == (503, {"error": message})
        assert status == 200 and events[0] == {"text_output": "a"} and events[-1] == {"error": message}
        assert len([event for event in events if "error" in event]) == 1
        assert before.post("x").status_code == 200


def test_what_is_in_a_model_that_goes_down_ends_at_once_and_so_does_what_comes() -> None:
    with gated() as before:

        def down() -> None:
            before.states.down("dead", "killed")
            before.states.down("endless", "killed")

        whole, (_, events) = ended(before, down)
        assert whole == (503, {"error": "dead is being loaded again: killed"})
        assert events[-1] == {"error": "endless is being loaded again: killed"}
        requests = len(before.triton.requests)
        answer = before.post("dead")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert len(before.triton.requests) == requests and before.post("x").status_code == 200
        before.states.up("endless")
        assert next(http.stream(f"{before.url}/v2/models/endless/generate_stream", {})) == {
            "text_output": "a"
        }


def test_what_runs_when_the_gate_stops_has_an_end() -> None:
    with gated() as before:
        whole, (_, events) = ended(before, before.states.stop)
        assert whole == (503, {"error": STOPPING}) and events[-1] == {"error": STOPPING}
        assert httpx.get(f"{before.url}/v2/health/ready").status_code == 503


def test_without_triton_it_is_503() -> None:
    with bound(0, "--x") as closed:
        upstream = f"http://127.0.0.1:{closed.getsockname()[1]}"
        states = ModelStates()
        with gate.listening(upstream, ("m",), bound(0, "--http-port"), Access(), states, 60) as url:
            answer = httpx.get(f"{url}/v2/health/ready")
            assert answer.status_code == 503 and answer.json() == {
                "error": "the Triton server does not answer"
            }
