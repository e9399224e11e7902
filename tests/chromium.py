"""Headless Chromium over its DevTools protocol, for what only a browser can tell of a page."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)


class Browser:
    """One page of one browser, as a context manager.

    Attributes:
        complaints: what the console and the page's own errors have said so far.
    """

    def __init__(self, profile: Path, width: int = 1200, dark: bool = False) -> None:
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-unsafe-swiftshader",
            "--remote-debugging-port=0",
        ]
        flags += [f"--user-data-dir={profile}", "--no-first-run", "--remote-allow-origins=*", "about:blank"]
        (profile / "DevToolsActivePort").unlink(missing_ok=True)  # of an earlier browser on this profile
        self.process = subprocess.Popen(
            [str(BROWSER), *flags], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self.complaints: list[str] = []
        self.numbers = itertools.count(1)
        try:
            self._connect(profile)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=False,
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self.call("Emulation.setEmulatedMedia", features=[scheme])
        except BaseException:
            self.process.kill()
            raise

    def _connect(self, profile: Path) -> None:
        until, file = time.monotonic() + 60, profile / "DevToolsActivePort"
        while not (file.is_file() and file.read_text().count("\n")):
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError("Chromium did not start")
            time.sleep(0.05)
        port = file.read_text().split()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        targets = json.load(opener.open(f"http://127.0.0.1:{port}/json"))
        page = next(t for t in targets if t["type"] == "page")
        self.socket = websocket.create_connection(
            page["webSocketDebuggerUrl"], timeout=60, http_no_proxy=["127.0.0.1"]
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol; events that come meanwhile are heard."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]  # type: ignore[no-any-return]
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            text = params["entry"]["text"]
            if (
                "GL Driver Message (OpenGL, Performance" not in text
            ):  # drawing WebGL without a GPU: of this machine, not of the page
                self.complaints.append(text)
        elif method == "Network.requestWillBeSent" and params["request"]["url"].startswith("http"):
            self.complaints.append(f"asks the network for {params['request']['url']}")

    def open(self, page: Path) -> float:
        """Opens a file; the seconds until its load event and a first frame after it."""
        started = time.monotonic()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))")
        return time.monotonic() - started

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (a promise is awaited)."""
        made = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in made, made["exceptionDetails"]
        return made["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.02)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))


def missing() -> str | None:
    """Why no browser test can run here; None where one can. In CI a missing browser is a failure, not a reason."""
    if BROWSER is None and not os.environ.get("CI"):
        return "no Chromium is found: `apt-get install chromium`"
    return None
