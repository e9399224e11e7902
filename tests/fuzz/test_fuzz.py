"""Hostile files of every kind end in success or in one line; ten whole commands show that one line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.test_surroundings import command, refusal
from tests.fuzz import kinds, mutations, nasty, paths
from tests.fuzz.worker import ACCEPTED, FAULT, HANG, MEMORY, REFUSED, Worker

INPUTS = 1200
"""Of all classes together: half a minute on one core, and the seeds take a quarter."""


@pytest.mark.slow
def test_no_hostile_file_ends_in_a_traceback_or_hangs_or_fills_the_memory(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", str(INPUTS), "--keep", str(keep)],
        env={**tiny.environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    heading, *rows = done.stdout.strip().splitlines()
    assert (
        heading == "class | inputs tried | refused in one line | accepted | tracebacks | hangs | over memory"
    )
    name, tried, refused, accepted, *faults = rows[-1].split(" | ")
    assert (name, int(tried), faults) == ("all", INPUTS, ["0", "0", "0"])
    assert int(refused) > INPUTS / 2 and int(accepted) > INPUTS / 20
    assert all(int(row.split(" | ")[2]) and int(row.split(" | ")[3]) for row in rows), (
        "a class is not reached"
    )
    assert not keep.exists()


def _deep(folder: Path, free: Path) -> None:
    json.loads((folder / "a.json").read_text(encoding="utf-8"))["a"]


def _for_ever(folder: Path, free: Path) -> None:
    (folder / "a.json").open(encoding="utf-8").read()


def _greedy(folder: Path, free: Path) -> None:
    assert bytearray(64 * 2**30)


def _dies(folder: Path, free: Path) -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("use", "put", "end"),
    [
        (_deep, lambda path: path.write_text("[" * 100_000), FAULT),
        (_deep, lambda path: path.write_text('{"b": 1}'), FAULT),
        (_deep, lambda path: path.write_text('{"a": 1}'), ACCEPTED),
        (_deep, lambda path: None, REFUSED),  # FileNotFoundError is an error of the disk
        (_for_ever, os.mkfifo, HANG),
        (_greedy, lambda path: None, MEMORY),
        (_dies, lambda path: None, FAULT),
    ],
)
def test_a_reader_that_is_not_strict_is_caught(
    use: kinds.Use,
    put: Callable[[Path], object],
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.fuzz.worker.SECONDS", 1.0)
    put(tmp_path / "a.json")
    worker = Worker([kinds.Kind("class", "kind", {}, lambda folder: None, use)])
    try:
        assert worker.read(0, tmp_path, tmp_path).end == end
    finally:
        worker.close()


def test_the_same_seed_gives_the_same_inputs() -> None:
    data = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    for form in ("json", "jsonl", "bytes"):
        first, again, other = (
            [mutations.FORMATS[form](data, random.Random(f"{seed}/{i}")) for i in range(40)]
            for seed in (0, 0, 1)
        )
        assert first == again != other
        assert len(set(first)) > 20


# ---- whole commands ---------------------------------------------------------------------------------------


def _model(config: str | None = None) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        tiny.tokenizer(tiny.checkpoint(folder / "m", vocab_size=tiny.WORDS))
        if config is not None:
            (folder / "m" / "config.json").write_text(config, encoding="utf-8")

    return write


def _file(name: str, content: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return write


def _exported_with(name: str, thing: str) -> Callable[[Path], object]:
    """A project with an exported model, one of whose files is replaced."""

    def write(folder: Path) -> None:
        _model()(folder)
        assert command("export", "m", cwd=folder).returncode == 0
        path = folder / "graphs" / "m" / name
        path.unlink()
        paths.THINGS[thing](path)

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "arguments", "words"),
    [
        (_model("[" * 100_000), ["export", "m"], "recursion limit"),
        (_model(f'{{"num_hidden_layers": {"9" * 5000}}}'), ["export", "m"], "config.json"),
        (lambda folder: os.mkfifo(folder / "m.gguf"), ["export", "m.gguf"], "m.gguf"),
        (_file("a.toml", f"models = [{nasty.TOML[-2]}]"), ["sweep", "a.toml"], "beyond 64 bits"),
        (lambda folder: (folder / "z.toml").symlink_to("/dev/zero"), ["sweep", "z.toml"], "not a regular"),
        (_exported_with("base.fp32.json", "folder"), ["show", "graphs/m/base.fp32.onnx"], "sidecar"),
        (_exported_with("base.fp32.onnx", "sparse"), ["check", "graphs/m/base.fp32.onnx"], "not what its"),
        (_exported_with("tokenizer.json", "zero"), ["generate", "graphs/m/base.fp32.onnx", "a"], "tokenizer"),
        (_exported_with("model.safetensors", "fifo"), ["export", "graphs/m"], "safetensors"),
        (_file("repo/SHIP.json", '{"models": 1e400}'), ["serve", "repo"], "SHIP.json"),
        (
            _file("evals/benchmarks/laughs.yaml", nasty.YAML_WHOLE[1]),
            ["score", "graphs/m/base.fp32.onnx", "--tasks", "laughs"],
            "base.fp32.onnx does not exist|anchor",
        ),
        (lambda folder: (_model()(folder), os.mkfifo(folder / "t.txt")),
         ["calibrate", "m", "--texts", "t.txt"], "t.txt does not exist"),
    ],
)  # fmt: skip
def test_a_whole_command_ends_with_two_and_one_line(
    write: Callable[[Path], object], arguments: list[str], words: str, workdir: Path
) -> None:
    write(workdir)
    line = refusal(command(*arguments, cwd=workdir))
    assert any(one in line for one in words.split("|")), line
    assert not list(workdir.rglob(".*.tmp"))
