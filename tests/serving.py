"""What the tests of shipping and serving share: tiny checked variants, a repository of them, and when to skip."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.ship.triton import wheel
from pipeline.types import SkipSet, UserError
from tests import tiny

CHAT = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
WINDOW = 4096


def project(root: Path, names: tuple[str, ...] = ("base", "attn2-3")) -> list[Path]:
    """A tiny Llama with tokenizer and chat template under root/graphs, its variants recorded as checked."""
    folder = tiny.checkpoint(
        root / "models" / "tiny",
        vocab_size=tiny.WORDS,
        num_hidden_layers=4,
        max_position_embeddings=WINDOW,
        seed=3,
    )
    tiny.tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    base = export.export_base(checkpoint.resolve(str(folder)))
    graphs = [variants.cut(base, SkipSet.parse(name)) for name in names]
    for graph in graphs:
        store.write_json(
            store.result_path("tiny", graph, "check"), {"passed": True, "sha256": store.sha256(graph)}
        )
    return graphs


@contextmanager
def within(folder: Path):
    """The folder as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def triton() -> wheel.Wheel:
    """The server's environment; where it cannot be had the test skips with the reason, in CI it fails."""
    try:
        return wheel.find()
    except UserError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Triton server here: {error}")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command's exit code and words, run in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=tiny.environment(),
    )


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Waits until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def stubs(prefix: str) -> list[int]:
    """Processes whose command line holds the text: the Python models of one server."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if prefix in line and "triton" in line:
            found.append(int(entry.name))
    return found
