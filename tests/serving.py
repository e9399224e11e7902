"""What the tests of shipping and serving share: tiny checked variants, a repository of them, when to skip."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline import store
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.runner import Runner
from pipeline.ship.triton import checks, http, repository, wheel
from pipeline.ship.triton.server import Server
from pipeline.store.records import ShippedModel, ShippedVersion, ShipRecord
from pipeline.types import Failed, SkipSet, UserError
from tests import tiny

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
    "{% if messages[0].content == 'for ever' %}{{ 9 ** (9 ** (7 + messages | length)) }}{% endif %}"
)
WINDOW = 4096


def project(root: Path, names: tuple[str, ...] = ("base", "attn2-3"), model: str = "tiny") -> list[Path]:
    """A tiny Llama with tokenizer and chat template under root/graphs, its variants recorded as checked."""
    folder = tiny.checkpoint(
        root / "models" / model,
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
        tiny.passed(graph)
    return graphs


UNKNOWN = "<|im_start|>"


def project_of_unknown_token(root: Path) -> list[Path]:
    """The base of a tiny Llama whose tokenizer has a token that its embedding has no row for."""
    folder = tiny.checkpoint(
        root / "models" / "lacks", vocab_size=tiny.WORDS, max_position_embeddings=WINDOW, seed=3
    )
    tiny.tokenizer(folder)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    words.add_special_tokens({"additional_special_tokens": [UNKNOWN]})
    words.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT.replace("<s>", UNKNOWN))
    base = export.export_base(checkpoint.resolve(str(folder)))
    tiny.passed(base)
    return [base]


def plan(graph: Path, backend: str) -> Path:
    """A file in the place of an engine, with the sidecar that `build-engine` writes; no test here runs it."""
    sidecar = store.graph_sidecar(graph)
    path = store.Project.of(graph).engine("tiny", sidecar.variant, backend, "sm80", "fp32")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a plan")
    ranges = {"batch": [1, 1, 8], "length": [1, 100, 512], "past": [0, 100, 512], "wanted": [1, 1, 1]}
    store.write_sidecar(
        path,
        {
            **store.records.variant_fields(sidecar.as_variant()),
            "artefact": "engine",
            "tokenizer": sidecar.tokenizer,
            "weights": sidecar.weights,
            "backend": backend,
            "backend_version": "11.1.0",
            "targets": ["sm80"],
            "ranges": ranges,
            "stripped": False,
            "profiles": [{"input_ids": [[1, 1], [1, 100], [8, 512]]}],
            "folder": store.relative(graph.parent, path),
            "graph": {"file": graph.name, "sha256": sidecar.sha256},
        },
    )
    return path


def shipped_version(folder: Path | None = None, *models: Path, **changes: Any) -> ShippedVersion:
    """A version whose files are those of these folders under `folder`."""
    files = repository.digests(folder, *models) if folder else {}
    fields = {
        "model": "tiny",
        "variant": "base",
        "skip": {"attention": [], "mlp": []},
        "precision": "fp32",
        "sha256": "0" * 64,
        "settings": {},
        "kind": "onnx graph",
        "artefact": "../x.onnx",
        "check": "passed",
        "raw_model": True,
        "graph": "m/1/model.onnx/model.onnx",
        "kv_bytes_per_token": 1024,
        "shipped": "2026-01-01T00:00:00+00:00",
        "files": {name: file.plain() for name, file in files.items()},
        **changes,
    }
    return ShippedVersion.model_validate_json(json.dumps(fields))


def ship_record(**models: dict[str, ShippedVersion]) -> ShipRecord:
    """SHIP.json of these models: NAME → number → version."""
    new = repository.read_or_new(Path("nothing here"))
    shipped = {
        name: ShippedModel(generate=f"{name}_generate", versions=versions)
        for name, versions in models.items()
    }
    return new.replaced(models=shipped)


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
    """The server's environment. Without one the test skips with the reason; in CI it fails."""
    try:
        return wheel.find()
    except UserError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Triton server here: {error}")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, run in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=tiny.environment(),
    )


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def stubs(text: str) -> list[int]:
    """Processes of Triton whose command line holds the text: the Python models of one server."""
    lines = {
        process.pid: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    }
    return [pid for pid, line in lines.items() if text in line and "triton" in line]


BASE, CUT, NARROW = "tiny-base", "tiny-attn2-3", "narrow"
PROMPTS = [
    "the time",
    "a way to see the world in a day",
    "people",
    "work and life and the place of the hand in the eye of the child",
    "point",
    "number of the week",
    "case",
    "woman and man " * 12,
]


KILLED_WITHIN_A_LOCK = "boost::interprocess::lock_exception"


@dataclass
class Served:
    """A server, its repository, and the same graphs run directly."""

    server: Server
    repo: Path
    runners: dict[str, Runner]
    prompts: Prompts

    def death(self) -> str | None:
        """How the server ended by itself, with the end of its log; None where it runs."""
        if self.server.is_running():
            return None
        code = self.server.process.returncode if self.server.process else None
        return f"the Triton server ended with {code}; its log ends:\n{self.server.tail(60)}"

    def despite_locks(self, kill: Callable[[], None], attempts: int = 4) -> None:
        """Runs what kills a model's process, anew where Triton died of the lock that the process held.

        A process that is killed while it holds the lock of the memory that it shares with Triton 24.10 takes
        the server along (`KILLED_WITHIN_A_LOCK`). No other failure is run again, nor a death of another kind.
        """
        for left in reversed(range(attempts)):
            try:
                kill()
            except (AssertionError, Failed, httpx.HTTPError, openai.OpenAIError):
                with suppress(AssertionError):
                    until(self.death, 3)
                if not left or KILLED_WITHIN_A_LOCK not in (self.death() or ""):
                    raise
                print(self.death())
                self.server.restart()
            else:
                return

    def url(self, model: str, what: str = "generate") -> str:
        return f"{self.server.http}/v2/models/{model}_generate/{what}"

    def generate(self, model: str, text: str, **fields: Any) -> str:
        status, answer = http.post(self.url(model), {"text_input": text, **fields})
        assert status == 200 and "text_output" in answer, answer
        return answer["text_output"]

    def streamed(self, model: str, text: str, **fields: Any) -> list[str]:
        body = {"text_input": text, "stream": True, **fields}
        return [event["text_output"] for event in http.stream(self.url(model, "generate_stream"), body)]

    def direct(self, model: str, text: str, **fields: Any) -> str:
        return checks.direct(self.runners[model], self.prompts, text, Sampling(**fields))

    def metric(self, name: str, model: str) -> float:
        text = http.get(self.server.metrics).text
        return float(re.search(rf'^{name}{{model="{model}_generate"}} (\S+)', text, re.M)[1])
