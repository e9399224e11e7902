"""Mixed load with faults on `pipeline serve`: `make soak`, five minutes; the test suite runs it for a few seconds.

Clients stream, ask whole, draw, hang up, cancel, and send nonsense, while every so often a model's process is killed with
-9. Every answer is held against the same graph run directly: a request ends with just that text, or with a stated error.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.onnxruntime import OnnxRunner, open_session
from pipeline.ship import ship
from pipeline.ship.triton import checks, repository
from tests import serving, tiny

CLIENTS = 12
PROMPTS = ("the time", "people and work", "a way to see the world", "point of the week " * 8)
MODELS = ("tiny-base", "tiny-attn2-3")
LENGTHS = (3, 17, 60, 140)
RELOAD = 180.0
"""Seconds after which a killed model is back for certain: the watch's own question may have died with it, 60 s of waiting."""


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


@contextmanager
def served(repo: Path, *options: str):
    """`pipeline serve` on free ports, ready; stopped with SIGINT."""
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "serve",
        str(repo),
        "--http-port",
        "0",
        "--grpc-port",
        "0",
    ]
    process = subprocess.Popen(
        [*command, "--metrics-port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=tiny.environment(),
    )  # fmt: skip
    words = list[str]()
    threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True).start()
    line = process.stdout.readline()
    if not line.startswith("ready: "):
        process.wait(60)
        time.sleep(0.2)
        raise RuntimeError("".join(words))
    one = Serve(process, line.split()[1], repo)
    try:
        yield one
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@dataclass
class Report:
    """What came of it.

    Attributes:
        counts: outcome → requests.
        wrong: answers that were neither right nor a stated error.
        kills: model processes killed.
        memory: MB resident of the server and of the models' processes, from the middle to the end: [(seconds, MB), …].
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kills: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


def expected(repo: Path) -> dict[tuple[str, str, int, int | None], str]:
    """The text of every request that the clients may make, from the graphs run directly."""
    texts = {}
    for name, (version, told) in repository.newest(repository.read(repo)).items():
        path = repo / told["graph"]
        prompts = Prompts.load(repo / f"{name}_generate" / str(version))
        with OnnxRunner(path, open_session(path, path.parent)) as runner:
            for prompt in PROMPTS:
                for length in LENGTHS:
                    for seed in (None, 1):
                        sampling = Sampling(
                            max_tokens=length, seed=seed, temperature=0.8 if seed else 0, ignore_eos=True
                        )
                        texts[name, prompt, length, seed] = checks.direct(runner, prompts, prompt, sampling)
    return texts


def client(
    serve: Serve, texts: dict[Any, str], number: int, until: float, report: Report, lock: threading.Lock
) -> None:
    """One client: random requests, one after the other."""
    draw = random.Random(number)
    while time.monotonic() < until:
        key = (draw.choice(MODELS), draw.choice(PROMPTS), draw.choice(LENGTHS), draw.choice((None, 1)))
        model, prompt, length, seed = key
        url = f"{serve.http}/v2/models/{model}_generate"
        body: dict[str, Any] = {"text_input": prompt, "max_tokens": length, "ignore_eos": True}
        body |= {"seed": seed, "temperature": 0.8} if seed else {}
        kind = draw.choice(("stream", "stream", "whole", "whole", "hang up", "nonsense"))
        outcome, wrong = kind, None
        try:
            if kind == "whole":
                status, answer = checks.post(f"{url}/generate", body, timeout=20)
                text = answer.get("text_output") if status == 200 else None
                outcome, wrong = ("whole", None) if text == texts[key] else _unanswered(status, answer)
            elif kind == "nonsense":
                status, answer = checks.post(f"{url}/generate", {**body, "max_tokens": -length}, timeout=20)
                wrong = None if status != 200 else f"nonsense was answered: {answer}"
            else:
                events = checks.stream(f"{url}/generate_stream", {**body, "stream": True}, timeout=20)
                if kind == "hang up":
                    next(events)
                    events.close()
                else:
                    found = list(events)
                    errors = [event for event in found if "error" in event]
                    text = "".join(event.get("text_output", "") for event in found)
                    outcome, wrong = (
                        ("stream", None)
                        if text == texts[key]
                        else _unanswered(200, errors[0] if errors else text)
                    )
        except urllib.error.HTTPError as error:  # a stream that was refused with a status and words
            outcome, wrong = _unanswered(error.code, {"error": error.read().decode(errors="replace")})
        except (OSError, HTTPException, StopIteration, urllib.error.URLError) as error:
            outcome = f"connection: {type(error).__name__}"
        with lock:
            report.counts[outcome] += 1
            report.wrong += [f"{key}: {wrong}"] if wrong else []


def _unanswered(status: int, answer: Any) -> tuple[str, str | None]:
    """A stated error of a model that is down or being loaded is no loss: the client was told."""
    error = str(answer.get("error", "")) if isinstance(answer, dict) else ""
    told = (
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
    if any(word in error for word in told):
        return "told: model down", None
    return "wrong", f"HTTP {status}: {answer}"


def run(root: Path, seconds: float) -> Report:
    """The load for so long; models are killed in the first half, memory is watched in the second."""
    with serving.within(root):
        repo = Path("engines/triton").resolve()
        ship.ship(serving.project(root), repo)
        texts, report, lock = expected(repo), Report(), threading.Lock()
        with served(repo) as serve:
            start = time.monotonic()
            arguments = (start + seconds, report, lock)
            threads = [
                threading.Thread(target=client, args=(serve, texts, k, *arguments)) for k in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            kills = [start + seconds * share for share in (0.1, 0.3)]
            while time.monotonic() < start + seconds:
                time.sleep(0.5)
                if kills and time.monotonic() > kills[0]:
                    kills.pop(0)
                    model = f"{MODELS[report.kills % 2]}_generate"
                    serving.until(functools.partial(serve.stubs, model), RELOAD)  # it may be loading just now
                    os.kill(serve.stub(model), signal.SIGKILL)
                    report.kills += 1
                if time.monotonic() > start + seconds * 0.6:
                    report.memory.append(
                        (time.monotonic() - start, _megabytes([*serve.stubs(), serve.server()]))
                    )
            for thread in threads:
                thread.join(150)
            assert not any(thread.is_alive() for thread in threads), "a request never ended"
            for model in MODELS:
                serving.until(
                    lambda name=f"{model}_generate": checks.answers(serve.http, name) is None, RELOAD
                )
    return report


def _megabytes(pids: list[int]) -> float:
    total = 0
    for pid in set(pids):
        status = Path(f"/proc/{pid}/status")
        if status.is_file():
            total += next(
                int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")
            )
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), arguments.seconds)
    memory = [megabytes for _, megabytes in report.memory]
    print(
        json.dumps(
            {
                "seconds": arguments.seconds,
                "requests": report.counts,
                "kills": report.kills,
                "wrong": report.wrong[:5],
            }
        )
    )
    print(
        f"memory in the second half: {memory[0]:.0f} MB, {min(memory):.0f} to {max(memory):.0f}, at the end {memory[-1]:.0f}"
    )
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
