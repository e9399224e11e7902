"""Mixed load with faults on `pipeline serve`: `make soak`, ten minutes; the test suite takes half a minute.

Half of the clients abuse the server (`abuse.py`). The others ask Triton and the OpenAI front for texts, whole
and streamed, and ask again when they are told that a model is down, while now and then a model is killed, and
once Triton itself.
Each must get, in the end, the text of the same graph run directly.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.ship.triton import checks, http, repository, ship
from tests import abuse, serving, tiny

CLIENTS = 24
PROMPTS = ("the time", "people and work", "a way to see the world", "point of the week " * 8)
MODELS = ("tiny-base", "tiny-attn2-3")
LENGTHS = (3, 17, 60, 140)
SEEDS = (None, 1)
WAYS = ("whole", "stream", "whole, OpenAI", "stream, OpenAI")
KILLS = (0.1, 0.25)
"""When models are killed: parts of the whole time."""
SERVER_KILL = 0.4
"""When Triton is killed."""
SHM_OPTION = "shm-region-prefix-name="
RELOAD = 180.0
"""Seconds after which a killed model is back for certain."""
ANSWER = 20.0
"""Seconds of silence after which a client asks again."""
LOST = 120.0
"""Seconds after which a good request counts as lost."""
DOWN = (
    "not healthy", "unhealthy", "not ready", "unloaded", "unload", "not found", "is being", "unavailable",
    "no available versions", "Stub process", "queue is full", "took longer", "was not done",
    "does not answer", "failed to connect", "Connection refused", "Socket closed", "Connection reset",
)  # fmt: skip
"""Words of the errors that say that a model is down, or has no room."""


@dataclass
class Serve:
    """A `pipeline serve` process."""

    process: subprocess.Popen[str]
    http: str
    openai: str
    repo: Path

    def stubs(self, model: str = "") -> list[int]:
        place = f"{self.repo}/{model}/" if model else str(self.repo)
        servers = self.servers()
        return [pid for pid in self._descendants(place) if pid not in servers]

    def stub(self, model: str) -> int:
        return self.stubs(model)[0]

    def server(self) -> int:
        return self.servers()[0]

    def servers(self) -> list[int]:
        """Triton's process; none where it is being started again."""
        return self._descendants("--model-repository=")

    def memory_regions(self) -> str:
        """The pattern of this server's own shared memory; other servers may have left theirs here."""
        options = psutil.Process(self.server()).cmdline()
        return f"{next(option for option in options if SHM_OPTION in option).split(SHM_OPTION)[1]}*"

    def _descendants(self, text: str) -> list[int]:
        """Its processes whose command line holds the text."""
        lines = dict[int, str]()
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                lines[process.pid] = " ".join(process.cmdline())
        return [pid for pid, line in lines.items() if text in line and "triton" in line]


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
    lines = [process.stdout.readline()]
    if not lines[0].startswith("ready: "):
        process.wait(60)
        time.sleep(0.2)
        raise RuntimeError("".join(log))
    while not lines[-1].startswith("  curl"):
        lines.append(process.stdout.readline())
    front = next((line.split()[0] for line in lines if line.strip().endswith("(OpenAI)")), "")
    try:
        yield Serve(process, lines[0].split()[1], front, repo)
    except BaseException:
        print("".join(log[-40:]), file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@dataclass
class Report:
    """How the requests ended.

    Attributes:
        seconds: way of a good request → how long it took, with all its retries.
        retries: what a good request was told, or how its connection ended → times that it had to ask again.
        abuses: kind of abuse → times.
        wrong: good requests that were answered wrongly or never.
        kills: model processes killed.
        server_kills: times that Triton was killed.
        memory: (seconds, resident MB) of the server and its models, from the middle to the end.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    retries: Counter[str] = field(default_factory=Counter)
    abuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kills: int = 0
    server_kills: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For a person: latencies in seconds."""
        latencies = {
            way: {"requests": len(one), "p50": _quantile(one, 0.5), "p99": _quantile(one, 0.99)}
            for way, one in self.seconds.items()
            if one
        }
        megabytes = [one for _, one in self.memory]
        ends = {"first": megabytes[0], "last": megabytes[-1]}
        memory = {**ends, "lowest": min(megabytes), "highest": max(megabytes)}
        return {
            "good": latencies,
            "retries": self.retries,
            "abuses": self.abuses,
            "kills": self.kills,
            "server kills": self.server_kills,
            "memory, MB": {name: round(value) for name, value in memory.items()},
            "wrong": self.wrong[:5],
        }


def _quantile(seconds: list[float], part: float) -> float:
    return round(float(np.quantile(seconds, part)), 3)


Key = tuple[str, str, int, int | None]
"""Model, prompt, tokens and seed of a request."""


def expected(repo: Path) -> dict[Key, str]:
    """The text of every request that the good clients may make, from the graphs run directly."""
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
        address: of the server.
        texts: what `expected` gives.
        until: when the clients stop, by the monotonic clock.
        report: where outcomes are counted, under the lock.
    """

    address: abuse.Address
    texts: dict[Key, str]
    until: float
    report: Report
    lock: threading.Lock = field(default_factory=threading.Lock)


def good_client(load: Load, number: int) -> None:
    """Random requests, one after the other; each is asked again until it has its text, or is lost."""
    draw = random.Random(number)
    while time.monotonic() < load.until:
        key: Key = draw.choice(MODELS), draw.choice(PROMPTS), draw.choice(LENGTHS), draw.choice(SEEDS)
        way, start, told = draw.choice(WAYS), time.monotonic(), list[str]()
        while (problem := ask(load.address, way, key, load.texts[key])) is not None:
            told.append(problem)
            if problem.startswith("wrong") or time.monotonic() - start > LOST:
                break
            time.sleep(0.5)
        with load.lock:
            load.report.retries.update(told)
            if problem is None:
                load.report.seconds[way].append(time.monotonic() - start)
            else:
                load.report.wrong.append(f"{way} {key}: {problem}")


def abusive_client(load: Load, number: int) -> None:
    """One kind of abuse, again and again."""
    draw, kinds = random.Random(number), list(abuse.KINDS)
    kind = kinds[number % len(kinds)]
    while time.monotonic() < load.until:
        with contextlib.suppress(*abuse.ERRORS):
            abuse.KINDS[kind](load.address, draw)
        with load.lock:
            load.report.abuses[kind] += 1
        time.sleep(0.05)


def ask(address: abuse.Address, way: str, key: Key, text: str) -> str | None:
    """Why one request whose right answer is `text` has to be asked again; None where it came."""
    model, prompt, length, seed = key
    body: dict[str, Any] = {"max_tokens": length, "ignore_eos": True, "temperature": 0.8 if seed else 0.0}
    body |= {"seed": seed} if seed else {}
    is_openai, is_stream = way.endswith("OpenAI"), way.startswith("stream")
    if is_openai:
        url, body = address.completions(), {**body, "model": model, "prompt": prompt}
    else:
        what = "generate_stream" if is_stream else "generate"
        url, body = address.url(what, f"{model}_generate"), {**body, "text_input": prompt}
    try:
        if is_stream:
            answers = list(_events(url, {**body, "stream": True}))
        else:
            status, answer = http.post(url, body, timeout=ANSWER)
            answers = [answer] if status == httpx.codes.OK else [{"error": answer}]
    except httpx.HTTPStatusError as error:  # a stream that was refused with a status and words
        answers = [{"error": error.response.text}]
    except httpx.HTTPError as error:
        return f"connection: {type(error).__name__}"
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        is_told = any(word in str(errors[0]) for word in DOWN)
        return "told that it is down or full" if is_told else f"wrong: {str(errors[0])[:300]}"
    received = "".join(_text(answer) for answer in answers)
    return None if received == text else f"wrong: {received!r} is not {text!r}"


def _events(url: str, body: Any) -> Iterator[Any]:
    """The events of a stream, of either protocol: OpenAI's ends in an event that is no JSON."""
    with httpx.stream("POST", url, json=body, timeout=ANSWER, trust_env=False) as response:
        if response.is_error:
            response.read()
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def _text(answer: Any) -> str:
    if "choices" in answer:
        return "".join(choice["text"] for choice in answer["choices"])
    return answer["text_output"]


def run(root: Path, seconds: float) -> Report:
    """The load for so long; models are killed in the first half, memory is watched in the second."""
    with serving.within(root):
        repo = Path("engines/triton").resolve()
        ship.ship(serving.project(root), repo)
        texts = expected(repo)
        with served(repo, "--openai", "--openai-port", "0") as serve:
            start = time.monotonic()
            load = Load(abuse.Address(serve.http, serve.openai), texts, start + seconds, Report())
            threads = [
                threading.Thread(
                    target=good_client if number % 2 else abusive_client, args=(load, number // 2)
                )
                for number in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            disturb(serve, load, start, seconds)
            for thread in threads:
                thread.join(LOST + 60)
            assert not any(thread.is_alive() for thread in threads), "a request never ended"
            for model in MODELS:
                is_back = functools.partial(checks.problem, serve.http, f"{model}_generate")
                serving.until(lambda is_back=is_back: is_back() is None, RELOAD)
    return load.report


def disturb(serve: Serve, load: Load, start: float, seconds: float) -> None:
    """Kills two models and then Triton, and notes the memory until the load ends."""
    kills, report = [start + seconds * share for share in KILLS], load.report
    while time.monotonic() < load.until:
        time.sleep(0.5)
        assert serve.process.poll() is None, "the server ended"
        if kills and time.monotonic() > kills[0]:
            kills.pop(0)
            model = f"{MODELS[report.kills % 2]}_generate"
            serving.until(functools.partial(serve.stubs, model), RELOAD)  # it may be loading just now
            os.kill(serve.stub(model), signal.SIGKILL)
            report.kills += 1
        if not report.server_kills and time.monotonic() > start + seconds * SERVER_KILL:
            serving.until(serve.servers, RELOAD)
            os.kill(serve.server(), signal.SIGABRT)
            report.server_kills += 1
        if time.monotonic() > start + seconds * 0.6:
            memory = _megabytes([serve.process.pid, *serve.stubs(), *serve.servers()])
            report.memory.append((time.monotonic() - start, memory))


def _megabytes(pids: list[int]) -> float:
    total = 0
    for pid in set(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return total / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), arguments.seconds)
    print(json.dumps({"seconds": arguments.seconds, **report.plain()}, indent=1))
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
