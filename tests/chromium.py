"""A page in headless Chromium, for what only a browser can tell of it: Debian's own, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--enable-unsafe-swiftshader"]
"""WebGL is drawn by the processor."""
DRIVER_WARNING = "GL Driver Message (OpenGL, Performance"
"""Of drawing WebGL without a GPU; the page can do nothing about it."""


@contextmanager
def opened(
    file: Path, width: int = 1200, dark: bool = False, script: str = ""
) -> Iterator[tuple[Page, list[str]]]:
    """A file in a browser of its own, and the complaints so far: errors, warnings, requests to the network.

    Args:
        width: of the window, pixels.
        script: runs before the page's own.
    """
    complaints: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and DRIVER_WARNING not in message.text:
            complaints.append(message.text)

    def on_request(request: Request) -> None:
        if request.url.startswith("http"):
            complaints.append(f"asks the network for {request.url}")

    scheme: Literal["dark", "light"] = "dark" if dark else "light"
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=PROGRAM, args=FLAGS) as browser,
    ):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.add_init_script(script)
        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", on_request)
        page.goto(file.resolve().as_uri())
        yield page, complaints


def missing() -> str | None:
    """Why no browser test can run here; None where one can. In CI a missing browser is a failure."""
    if PROGRAM is None and not os.environ.get("CI"):
        return "no Chromium is found: `apt-get install chromium`"
    return None
