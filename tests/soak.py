"""Mixed load with faults on `pipeline serve`: `make soak`, five minutes; the test suite takes half a minute.

Clients stream, ask whole, draw, hang up, and send nonsense, while now and then a model is killed. Every
answer is compared with the same graph run directly: a request ends with just that text, or with an error.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.ship.triton import checks, http, repository, ship
from tests import serving, tiny

CLIENTS = 12
PROMPTS = ("the time", "people and work", "a way to see the world", "point of the week " * 8)
MODELS = ("tiny-base", "tiny-attn2-3")
LENGTHS = (3, 17, 60, 140)
SEEDS = (None, 1)
SHM_OPTION = "shm-region-prefix-name="
RELOAD = 180.0
"""Seconds after which a killed model is back for certain: the watch may wait 60 s for an answer that died."""
DOWN = (
    "not healthy",
    "unhealthy",
    "not ready",
    "unloaded",
    "unload",
    "not found",
    "is being",
    "no available versions",
    "Stub process",
)
"""Words of Triton's errors for a model that is down or being loaded."""


@dataclass
class Serve:
    """A `pipeline serve` process."""

    process: subprocess.Popen[str]
    http: str
    repo: Path

    def stubs(self, model: str = "") -> list[int]:
        return serving.stubs(f"{self.repo}/{model}/" if model else str(self.repo))

    def stub(self, model: str) -> int:
        return self.stubs(model)[0]

    def server(self) -> int:
        return next(pid for pid in serving.stubs(f"--model-repository={self.repo}"))

    def memory_regions(self) -> str:
        """The pattern of this server's own shared memory; other servers may have left theirs here."""
        options = psutil.Process(self.server()).cmdline()
        return f"{next(option for option in options if SHM_OPTION in option).split(SHM_OPTION)[1]}*"


@contextmanager
def served(repo: Path, *options: str):
    """`pipeline serve` on free ports, ready; stopped with SIGINT."""
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "serve", str(repo), *ports, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )
    log = list[str]()
    threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True).start()
    line = process.stdout.readline()
    if not line.startswith("ready: "):
        process.wait(60)
        time.sleep(0.2)
        raise RuntimeError("".join(log))
    try:
        yield Serve(process, line.split()[1], repo)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@dataclass
class Report:
    """How the requests ended.

    Attributes:
        counts: outcome → requests.
        wrong: answers that were neither right nor a stated error.
        kills: model processes killed.
        memory: (seconds, resident MB) of the server and its models, from the middle to the end.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kills: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


def expected(repo: Path) -> dict[tuple[str, str, int, int | None], str]:
    """The text of every request that the clients may make, from the graphs run directly."""
    texts = {}
    for name, (number, version) in repository.newest(repository.read(repo)).items():
        prompts = Prompts.load(repo / f"{name}_generate" / str(number))
        with checks.open_graph(repo, version) as runner:
            for prompt, length, seed in itertools.product(PROMPTS, LENGTHS, SEEDS):
                sampling = Sampling(
                    max_tokens=length, seed=seed, temperature=0.8 if seed else 0, ignore_eos=True
                )
                texts[name, prompt, length, seed] = checks.direct(runner, prompts, prompt, sampling)
    return texts


@dataclass
class Load:
    """What all clients share.

    Attributes:
        http: URL of the server.
        texts: what `expected` gives.
        until: when the clients stop, by the monotonic clock.
        report: where outcomes are counted, under the lock.
    """

    http: str
    texts: dict[Any, str]
    until: float
    report: Report
    lock: threading.Lock = field(default_factory=threading.Lock)


def client(load: Load, number: int) -> None:
    """One client: random requests, one after the other."""
    draw = random.Random(number)
    while time.monotonic() < load.until:
        key = draw.choice(MODELS), draw.choice(PROMPTS), draw.choice(LENGTHS), draw.choice(SEEDS)
        kind = draw.choice(("stream", "stream", "whole", "whole", "hang up", "nonsense"))
        try:
            outcome, wrong = ask(f"{load.http}/v2/models/{key[0]}_generate", kind, key, load.texts[key])
        except httpx.HTTPStatusError as error:  # a stream that was refused with a status and words
            outcome, wrong = unanswered(error.response.status_code, {"error": error.response.text})
        except (httpx.HTTPError, StopIteration) as error:
            outcome, wrong = f"connection: {type(error).__name__}", None
        with load.lock:
            load.report.counts[outcome] += 1
            load.report.wrong += [f"{key}: {wrong}"] if wrong else []


def ask(url: str, kind: str, key: tuple[str, str, int, int | None], text: str) -> tuple[str, str | None]:
    """(outcome, what is wrong with it) of one request whose right answer is `text`."""
    _, prompt, length, seed = key
    body: dict[str, Any] = {"text_input": prompt, "max_tokens": length, "ignore_eos": True}
    body |= {"seed": seed, "temperature": 0.8} if seed else {}
    if kind == "whole":
        status, answer = http.post(f"{url}/generate", body, timeout=20)
        is_right = status == 200 and answer.get("text_output") == text
        return ("whole", None) if is_right else unanswered(status, answer)
    if kind == "nonsense":
        status, answer = http.post(f"{url}/generate", {**body, "max_tokens": -length}, timeout=20)
        return kind, None if status != 200 else f"nonsense was answered: {answer}"
    events = http.stream(f"{url}/generate_stream", {**body, "stream": True}, timeout=20)
    if kind == "hang up":
        next(events)
        events.close()
        return kind, None
    received = list(events)
    whole = "".join(event.get("text_output", "") for event in received)
    errors = [event for event in received if "error" in event]
    return ("stream", None) if whole == text else unanswered(200, errors[0] if errors else whole)


def unanswered(status: int, answer: Any) -> tuple[str, str | None]:
    """A stated error of a model that is down or being loaded is no loss: the client knows."""
    error = str(answer.get("error", "")) if isinstance(answer, dict) else ""
    if any(word in error for word in DOWN):
        return "error: model down", None
    return "wrong", f"HTTP {status}: {answer}"


def run(root: Path, seconds: float) -> Report:
    """The load for so long; models are killed in the first half, memory is watched in the second."""
    with serving.within(root):
        repo = Path("engines/triton").resolve()
        ship.ship(serving.project(root), repo)
        texts = expected(repo)
        with served(repo) as serve:
            start = time.monotonic()
            load = Load(serve.http, texts, start + seconds, Report())
            threads = [threading.Thread(target=client, args=(load, number)) for number in range(CLIENTS)]
            for thread in threads:
                thread.start()
            disturb(serve, load, start, seconds)
            for thread in threads:
                thread.join(150)
            assert not any(thread.is_alive() for thread in threads), "a request never ended"
            for model in MODELS:
                is_back = functools.partial(checks.problem, serve.http, f"{model}_generate")
                serving.until(lambda is_back=is_back: is_back() is None, RELOAD)
    return load.report


def disturb(serve: Serve, load: Load, start: float, seconds: float) -> None:
    """Kills two models, then notes the memory until the load ends."""
    kills, report = [start + seconds * share for share in (0.1, 0.3)], load.report
    while time.monotonic() < load.until:
        time.sleep(0.5)
        if kills and time.monotonic() > kills[0]:
            kills.pop(0)
            model = f"{MODELS[report.kills % 2]}_generate"
            serving.until(functools.partial(serve.stubs, model), RELOAD)  # it may be loading just now
            os.kill(serve.stub(model), signal.SIGKILL)
            report.kills += 1
        if time.monotonic() > start + seconds * 0.6:
            memory = _megabytes([*serve.stubs(), serve.server()])
            report.memory.append((time.monotonic() - start, memory))


def _megabytes(pids: list[int]) -> float:
    total = 0
    for pid in set(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return total / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), arguments.seconds)
    memory = [megabytes for _, megabytes in report.memory]
    counts = {"seconds": arguments.seconds, "requests": report.counts, "kills": report.kills}
    print(json.dumps({**counts, "wrong": report.wrong[:5]}))
    print(
        f"memory in the second half: {memory[0]:.0f} MB, {min(memory):.0f} to {max(memory):.0f}, "
        f"at the end {memory[-1]:.0f}"
    )
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
