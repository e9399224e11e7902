from __future__ import annotations

import logging
import os
import signal
import zlib
from pathlib import Path

import pytest

from pipeline import store

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite that a shell started in the background ignores Ctrl-C, and so would each command of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # two workers on two cores: torch's threads of one must not wait for those of the other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
logging.getLogger("transformers").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests come first, those that wait and those that compute mixed.

    So the last file of one worker is short, and none waits for it (`--no-loadscope-reorder` keeps the order).
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: zlib.crc32(item.path.name.encode()) if item.path in slow else 1 << 32)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs an environment of its own, with the command that runs it."""
    if item.get_closest_marker("optimum") and not store.is_installed("optimum.onnxruntime"):
        pytest.skip("needs the extra optimum in an environment of its own: `make test-optimum`")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project root, made the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIPELINE_MODEL", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the real model's checkpoint. It is shared: tests write only what they name themselves.

    Converting the GGUF takes seconds; the result is kept in the user's cache between runs.
    """
    from pipeline.models import checkpoint

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skip-pipeline" / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(cache)
    try:
        checkpoint.resolve("demo")
    finally:
        os.chdir(before)
    return cache
