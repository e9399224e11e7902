"""Downloads from a hub on this machine: what is fetched, what is refused, what is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import store
from pipeline.models import checkpoint
from pipeline.types import UserError
from tests import tiny


class Hub(BaseHTTPRequestHandler):
    """The three routes of the Hugging Face hub that a download needs, over the files of one folder."""

    folder: Path
    commit = "c0ffee" + "0" * 34

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[2:4] == ["org", "tiny"]:
            siblings = [
                {"rfilename": f.name, "size": f.stat().st_size, "blobId": "b"} for f in self.folder.iterdir()
            ]
            self.reply(
                json.dumps({"id": "org/tiny", "sha": self.commit, "siblings": siblings}).encode(), send_body
            )
        elif parts[:3] == ["org", "tiny", "resolve"] and (file := self.folder / parts[-1]).is_file():
            self.reply(
                file.read_bytes(),
                send_body,
                {"ETag": f'"{store.sha256(file)}"', "X-Repo-Commit": self.commit},
            )
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

    def reply(self, body: bytes, send_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@pytest.fixture
def hub(workdir: Path) -> Iterator[str]:
    """A hub on this machine that serves the folder Hub.folder as org/tiny; yields its URL."""
    Hub.folder = tiny.checkpoint(workdir / "served", max_shard_size="60KB")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def export_from(hub: str, model: str) -> subprocess.CompletedProcess[str]:
    """`pipeline export MODEL` in a process of its own: huggingface_hub reads its endpoint at import."""
    environment = {**tiny.environment(), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "pipeline.cli", "export", model]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_hub_download(hub: str) -> None:
    shutil.copy(Hub.folder / "config.json", Hub.folder / "training.log")  # not wanted
    done = export_from(hub, "org/tiny")
    assert (done.returncode, done.stdout.strip()) == (0, "graphs/tiny/base.fp32.onnx"), done.stderr
    opened = checkpoint.resolve("tiny")
    assert opened.source.revision == Hub.commit and opened.source.origin == "org/tiny"
    assert {f.name for f in opened.files} == {f.name for f in Hub.folder.glob("*.safetensors")}
    assert (
        not any(f.is_symlink() for f in opened.folder.iterdir())
        and not (opened.folder / "training.log").exists()
    )


def test_hub_refusals(hub: str) -> None:
    done = export_from(hub, "org/other")
    assert (
        done.returncode == 2
        and "cannot fetch 'org/other'" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    assert not Path("graphs/other").exists()
    for file in Hub.folder.glob("*.safetensors*"):
        file.unlink()
    done = export_from(hub, "org/tiny")
    assert done.returncode == 2 and "no safetensors weights" in done.stderr


def test_offline_is_one_line(workdir: Path) -> None:
    with pytest.raises(UserError, match="cannot fetch 'org/tiny'") as caught:
        checkpoint.resolve("org/tiny")
    assert "\n" not in str(caught.value)
