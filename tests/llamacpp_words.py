"""llama.cpp's tokenizer of a GGUF file, in a process of its own.

A server of xllamacpp may never return when it is let go, and would hold the tests up; its process just ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.evals.check.llamacpp import LlamaCpp


class Words:
    """What llama.cpp makes of texts; a context manager."""

    def __init__(self, file: Path) -> None:
        line = [sys.executable, "-m", __name__, str(file)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(line, env=environment, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.kill()
        self.child.communicate()

    def ids(self, text: str, special: bool = True) -> list[int]:
        """The tokens of a text; `special` adds a BOS where the model has one."""
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(json.dumps({"content": text, "add_special": special}) + "\n")
        self.child.stdin.flush()
        ids: list[int] = json.loads(self.child.stdout.readline())
        return ids


def _post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/tokenize", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _main() -> None:
    """Answers each line of stdin with a line of stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp may write to stdout too
    server = LlamaCpp(Path(sys.argv[1])).server
    for line in sys.stdin:
        ids = _post(server.listening_address, {**json.loads(line), "parse_special": True})["tokens"]
        print(json.dumps(ids), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main()
