"""HTTP and server-sent events, against a server of the standard library."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from pipeline.ship.triton import http

TEXT = "one\u2028two\x85three\x0cfour"
"""Characters that str.splitlines takes for ends of lines, and JSON does not escape."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, b"here")

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        match self.path:
            case "/json":
                seen = {"body": json.loads(self.body), "type": self.headers["Content-Type"]}
                self.answer(200, json.dumps(seen).encode())
            case "/text":
                self.answer(418, b"no JSON")
            case "/refused":
                self.answer(400, b'{"error": "no"}')
            case "/events":
                events = [json.dumps({"text": text}, ensure_ascii=False) for text in ("a", TEXT, "z")]
                stream = "".join(f"data: {event}\n\n" for event in events).encode()
                self.send_response(200)
                self.end_headers()
                for start in range(0, len(stream), 7):  # in the middle of lines and characters
                    self.wfile.write(stream[start : start + 7])
                    self.wfile.flush()
            case "/silent":
                self.server.gone.wait(10)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.gone = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.gone.set()
    server.shutdown()
    server.server_close()


def test_post(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # no proxy stands before this machine
    assert http.get(url).text == "here"
    assert http.post(f"{url}/json", {"a": TEXT}) == (
        200,
        {"body": {"a": TEXT}, "type": "application/json"},
    )
    assert http.post(f"{url}/json", b"[1]")[1]["body"] == [1]
    assert http.post(f"{url}/text", {}) == (418, "no JSON")


def test_stream_ends_events_at_line_feeds_alone(url: str) -> None:
    assert [event["text"] for event in http.stream(f"{url}/events", {})] == ["a", TEXT, "z"]


def test_a_refused_stream_and_a_silent_server(url: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        next(http.stream(f"{url}/refused", {}))
    assert caught.value.response.json() == {"error": "no"}
    with pytest.raises(httpx.ReadTimeout):
        http.post(f"{url}/silent", {}, timeout=0.2)
    with pytest.raises(httpx.ConnectError):
        http.get("http://127.0.0.1:1")
