"""What stands before the models: ports, who may ask, `serve` under abuse and when it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from pipeline.ship.fronts import Fronts
from pipeline.ship.ports import Ports
from pipeline.ship.triton import http, ship
from pipeline.ship.web.guard import Access
from pipeline.ship.web.model_states import ModelStates
from pipeline.types import UserError
from tests import serving, soak
from tests.serving import until
from tests.web import raw, received

TEXT = "tiny-base_generate"
LONG = {"text_input": "the time", "max_tokens": 3000, "ignore_eos": True}
HEAD = (
    b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)


def test_times_that_are_none() -> None:
    for seconds in (0.0, -1.0, float("nan"), float("inf"), 1e6):
        with pytest.raises(UserError, match=r"--request-timeout takes seconds, above 0 and up to 86400, not"):
            Fronts(request_timeout=seconds)


def test_ports_are_taken_before_anything_starts(caplog: pytest.LogCaptureFixture) -> None:
    with Fronts(openai_port=0).bound(Ports(0, 0, 0)) as (first, second):
        assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"
        taken = second.getsockname()[1]
        second.listen()
        with (
            pytest.raises(UserError, match="choose another --openai-port"),
            Fronts(taken).bound(Ports(0, 0, 0)),
        ):
            pass
        assert not caplog.text
    with socket.socket() as free:
        free.bind(("127.0.0.1", taken))  # it was given back


def test_a_port_twice_is_one_line() -> None:
    for openai, ports in ((8000, Ports(8000, 0, 0)), (None, Ports(0, 9, 9)), (0, Ports(9, 8, 9))):
        with pytest.raises(UserError, match=r"port \d+ is named twice"), Fronts(openai).bound(ports):
            pass


def test_a_host_of_another_machine_is_one_line() -> None:
    for host, line in (
        ("192.0.2.1", "--host 192.0.2.1 is no address of this machine"),
        ("no.such.host.invalid", "--host no.such.host.invalid is no address and no known name"),
    ):
        with pytest.raises(UserError, match=line), Fronts(access=Access(host)).bound(Ports(0, 0, 0)):
            pass


def test_an_open_door_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with Fronts(access=Access("0.0.0.0", api_key="sesame")).bound(Ports(0, 0, 0)):
        assert not caplog.text
    with Fronts(access=Access("0.0.0.0")).bound(Ports(0, 0, 0)):
        assert "whoever reaches 0.0.0.0 may use the models: set --api-key" in caplog.text


def test_both_fronts_ask_for_the_key() -> None:
    fronts = Fronts(openai_port=0, access=Access(api_key="sesame"))
    server: Any = SimpleNamespace(http="http://127.0.0.1:9", grpc="127.0.0.1:9")
    with (
        fronts.bound(Ports(0, 0, 0)) as sockets,
        fronts.opened(server, ["m", "m_generate"], sockets, ModelStates()) as urls,
    ):
        for url in urls:
            assert httpx.get(f"{url}/v1/models").status_code == 401
        answer = httpx.get(f"{urls[1]}/v1/models", headers={"Authorization": "Bearer sesame"})
        assert [model["id"] for model in answer.json()["data"]] == ["m"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one tiny model."""
    serving.triton()
    root = tmp_path_factory.mktemp("project")
    with serving.within(root):
        ship.ship(serving.project(root, ("base",)), root / "engines/triton")
    return root / "engines/triton"


@pytest.fixture(scope="module")
def running(repo: Path) -> Iterator[soak.Serve]:
    with soak.served(repo, "--request-timeout", "50") as running:
        yield running


@pytest.fixture
def url(running: soak.Serve) -> str:
    return f"{running.http}/v2/models/{TEXT}"


@pytest.mark.triton
@pytest.mark.slow
def test_forms_and_large_bodies_no_longer_crash_the_server(running: soak.Serve, url: str) -> None:
    """Triton 24.10 alone ends with a segmentation fault at the first of these."""
    triton = running.server()
    body = {"text_input": "the time", "max_tokens": 4}
    five = json.dumps({**body, "text_input": "x" * 5_000_000}).encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for headers in (form, {}, {"Content-Type": "multipart/form-data; boundary=x"}):
        answer = httpx.post(f"{url}/generate", content=five, headers=headers, timeout=60)
        assert answer.status_code == 400 and "longer than the context" in answer.json()["error"]
        small = httpx.post(f"{url}/generate", json=body, headers=headers)
        assert small.status_code == 200 and small.json()["text_output"]
    chunks = iter([json.dumps(body).encode()[:9], json.dumps(body).encode()[9:]])
    assert httpx.post(f"{url}/generate", content=chunks).status_code == 200
    huge = httpx.post(f"{url}/generate", content=b"x" * (65 * 2**20), timeout=60)
    assert huge.status_code == 413
    assert httpx.post(f"{url}/generate", content=b"{bad").status_code == 400
    assert running.server() == triton


@pytest.mark.triton
@pytest.mark.slow
def test_models_come_from_the_repository_alone(running: soak.Serve) -> None:
    load = f"{running.http}/v2/repository/models/own/load"
    config = json.dumps({"backend": "python", "max_batch_size": 0})
    answer = httpx.post(load, json={"parameters": {"config": config, "file:1/model.py": "cHJpbnQoKQ=="}})
    assert answer.status_code == 403
    assert httpx.post(f"{running.http}/v2/repository/index").status_code == 200


@pytest.mark.triton
@pytest.mark.slow
def test_two_hundred_streams_and_as_many_hangups(running: soak.Serve, url: str) -> None:
    """What is left is freed: the model's batch is empty soon after, or a last answer would wait for them."""
    body = {**LONG, "max_tokens": 900, "stream": True}  # sixteen of them fill the cache

    def first(_: int) -> Any:
        events = http.stream(f"{url}/generate_stream", {**body, "max_tokens": 8}, timeout=100)
        return "".join(event["text_output"] for event in events)

    with ThreadPoolExecutor(200) as pool:
        texts = list(pool.map(first, range(128)))
    assert len(set(texts)) == 1 and texts[0]
    streams = [http.stream(f"{url}/generate_stream", body, timeout=100) for _ in range(16)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()
    assert httpx.post(f"{url}/generate", json={**LONG, "max_tokens": 4}, timeout=30).status_code == 200
    triton = psutil.Process(running.server())
    until(lambda: len([c for c in triton.net_connections() if c.status == "ESTABLISHED"]) < 80)


@pytest.mark.triton
@pytest.mark.slow
def test_what_was_in_a_killed_process_ends_and_is_503_until_it_is_back(running: soak.Serve, url: str) -> None:
    results: list[Any] = []

    def whole() -> None:
        results.append(httpx.post(f"{url}/generate", json=LONG, timeout=100))

    def streamed() -> None:
        results.append(list(http.stream(f"{url}/generate_stream", {**LONG, "stream": True}, timeout=100)))

    threads = [threading.Thread(target=target) for target in (whole, streamed) * 2]
    for thread in threads:
        thread.start()
    time.sleep(1)
    os.kill(running.stub(TEXT), signal.SIGKILL)
    statuses = []
    while not statuses or statuses[-1] != 200:
        answer = httpx.post(f"{url}/generate", json={**LONG, "max_tokens": 1}, timeout=100)
        statuses.append(answer.status_code)
        assert answer.status_code == 200 or answer.headers["retry-after"] == "5", answer.text
        time.sleep(0.1)
    for thread in threads:
        thread.join(60)
    assert set(statuses) == {200, 503} and len(results) == 4
    for result in results:
        if isinstance(result, list):
            assert "error" in result[-1] and "text_output" in result[0]
        else:
            assert result.status_code == 503 and result.headers["retry-after"] == "5"


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hundred_open_streams_end_when_it_is_stopped(
    repo: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Each body has its end; clients that do not read, or send half a header, hold nothing up."""
    own = tmp_path / "triton"  # another server's processes are known by their repository
    shutil.copytree(repo, own)
    with ExitStack() as stack, soak.served(own, "--openai", "--openai-port", "0") as running:
        regions = running.memory_regions()
        processes = psutil.Process(running.process.pid).children(recursive=True)
        assert len(processes) >= 3  # Triton and its two models
        body = json.dumps({**LONG, "stream": True}).encode()
        path = f"/v2/models/{TEXT}/generate_stream".encode()
        whole = json.dumps(LONG).encode()
        streams = [stack.enter_context(raw(running.http, HEAD % (path, len(body), body))) for _ in range(100)]
        waiting = HEAD % (path.removesuffix(b"_stream"), len(whole), whole)
        wholes = [stack.enter_context(raw(running.http, waiting)) for _ in range(5)]
        for part in (b"", b"GET / HT", HEAD % (path, 99, b"{")):
            stack.enter_context(raw(running.http, part))
        time.sleep(1)
        running.process.send_signal(number)
        code = running.process.wait(30)  # 6 s on a quiet machine
        assert code == (143 if number == signal.SIGTERM else 0)
        ends = [received(connection) for connection in streams + wholes]
    for end in ends[:100]:
        assert end.endswith(b"0\r\n\r\n") or b"\r\n\r\n{" in end, end[-200:]
        assert b"the server is being stopped" in end
    assert all(end.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in end for end in ends[100:])
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not list(Path("/dev/shm").glob(regions))
