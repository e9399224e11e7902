"""What `ship` and `serve` keep to in any surroundings: addresses, memory, pipes, no HOME, the locale C."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pipeline.ship.triton import http, ship
from tests import serving, soak, tiny

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    serving.triton()
    with serving.within(tmp_path_factory.mktemp("surroundings")) as folder:
        repo = Path("engines/triton").resolve()
        ship.ship(serving.project(folder, ("base",)), repo)
        yield repo


def test_only_this_machine_is_listened_to_and_memory_stays_flat(repo: Path) -> None:
    """Over 2,000 requests, whole and streamed, eight at a time."""
    with soak.served(repo, "--openai", "--openai-port", "0") as running:
        pids = [running.process.pid, running.server(), *running.stubs()]
        listening = [
            one.laddr.ip.removeprefix("::ffff:")  # gRPC writes it so
            for pid in pids
            for one in psutil.Process(pid).net_connections()
            if one.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 5 and set(listening) == {"127.0.0.1"}
        url, body = (
            f"{running.http}/v2/models/tiny-base_generate",
            {"text_input": "the time", "max_tokens": 3},
        )

        def ask(number: int) -> str:
            if number % 2:
                return http.post(f"{url}/generate", body)[1]["text_output"]
            events = http.stream(f"{url}/generate_stream", {**body, "stream": True})
            return "".join(event["text_output"] for event in events)

        with ThreadPoolExecutor(8) as pool:
            texts = set(pool.map(ask, range(500)))
            before = soak._megabytes(pids)
            texts |= set(pool.map(ask, range(2000)))
            after = soak._megabytes(pids)
    assert len(texts) == 1
    assert after < before * 1.05 + 10, (before, after)


@pytest.mark.parametrize(
    "arguments", [("serve", "--smoke"), ("serve", "--smoke", "--json"), ("ship", "--json")]
)
def test_a_reader_that_leaves_a_home_that_is_not_there_and_the_locale_c(
    repo: Path, arguments: tuple[str, ...]
) -> None:
    """All at once: `env -u HOME LC_ALL=C pipeline … | head -1`."""
    command, *options = arguments
    targets = {
        "serve": [str(repo)],
        "ship": ["graphs/tiny/base.fp32.onnx", "--to", "triton", "engines/triton"],
    }
    words = [sys.executable, "-m", "pipeline.cli", command, *targets[command], *options]
    environment = {key: value for key, value in tiny.environment().items() if key != "HOME"}
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(words)} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={**environment, "LC_ALL": "C", "LANG": "C"},
        check=False,
    )
    # 1 is click's code where the reader has gone before all is written.
    assert "Traceback" not in done.stderr and done.returncode in (0, 1, 141), done.stderr
    assert "Broken pipe" not in done.stderr and "error" not in done.stderr
    assert len(done.stdout.splitlines()) == 1
    serving.until(lambda: not serving.stubs(str(repo)))
