"""A signal at any moment of a command: quiet, the right exit code, nothing half-written, nobody left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pipeline.graphs import export
from pipeline.models import checkpoint
from tests import results, tiny
from tests.grids import GRID, put

DRIVER = """
import os, signal, sys
number, at, count, mark = int(sys.argv[1]), int(sys.argv[2]), 0, sys.argv[3]
EVENTS = ("import", "open", "os.rename", "os.mkdir", "os.remove", "subprocess.Popen", "compile", "exec")
def hook(event, arguments):
    global count
    if event in EVENTS:
        count += 1
        if count == at:
            os.kill(os.getpid(), number)
del sys.argv[1:4]
sys.argv[0] = "pipeline"
from pipeline.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` starts everything with it ignored
sys.addaudithook(hook)
try:
    main()
finally:
    open(mark, "w").write(str(count))
"""
"""Sends itself the signal at the n-th import, opened file, … of the command."""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SMALL = """
models = ["models/tiny"]
kinds = ["attn"]
fractions = [0.3]
selectors = ["last"]
stages = ["export"]
"""
COMMANDS = {
    "list": ("list",),
    "report": ("report",),
    "export": ("export", "models/tiny", "--skip", "block", "--layers", "1"),
    "sweep": ("sweep", "small.toml"),
}


@pytest.fixture
def project(workdir: Path) -> Path:
    folder = workdir / "models" / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=4096)
    tiny.tokenizer(folder)
    put(GRID.replace("{model}", "models/tiny"))
    put(SMALL, "small")
    results.small_grid("SmolLM2-135M-Instruct")
    export.export_base(checkpoint.resolve("models/tiny"))
    return workdir


def run(command: str, number: int, at: int) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", DRIVER, str(number), str(at), "count.txt", *COMMANDS[command]]
    return subprocess.run(
        line, capture_output=True, text=True, env=tiny.environment(), check=False, timeout=300
    )


def fresh() -> None:
    for folder in ("evals/report", "evals/sweeps"):
        shutil.rmtree(folder, ignore_errors=True)
    for path in (*Path("graphs").glob("*/attn*"), *Path("graphs").glob("*/block*")):
        path.unlink()


def refuse_leftovers() -> None:
    assert [path for path in Path().rglob(".*") if path.name.endswith((".tmp", ".lock"))] == []


def marked(mark: str) -> list[int]:
    """Processes that have this in their environment."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_any_moment_is_quiet(
    command: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTED", mark := uuid.uuid4().hex)
    whole = run(command, 0, 0)
    assert whole.returncode == 0, whole.stderr
    total = int(Path("count.txt").read_text())
    assert total > 500
    moments = random.Random(0)
    for number in (*[signal.SIGINT, signal.SIGTERM] * 5, signal.SIGHUP):
        fresh()
        at = moments.randint(1, total)
        done = run(command, number, at)
        where = f"{signal.Signals(number).name} at {at} of {total}: {done.stderr}"
        assert done.returncode == CODES[number], where
        assert "Traceback" not in done.stderr and "Error" not in done.stderr, where
        refuse_leftovers()
        assert set(marked(mark)) <= {os.getpid()}, where


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_ends_its_jobs(
    number: signal.Signals, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTED", mark := uuid.uuid4().hex)
    moments = random.Random(1)
    for _ in range(3):
        fresh()
        line = [sys.executable, "-c", DRIVER, "0", "0", "count.txt", "sweep", "grid.toml"]
        pipe = subprocess.PIPE
        sweep = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=tiny.environment())
        while not list(Path("evals").glob("sweeps/grid/logs/*.log")):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 4))
        assert len(marked(mark)) >= 2 or sweep.poll() is not None
        sweep.send_signal(number)
        _, stderr = sweep.communicate(timeout=60)
        assert sweep.returncode == CODES[number], stderr
        assert "Traceback" not in stderr
        refuse_leftovers()
        assert set(marked(mark)) <= {os.getpid()}


def test_a_signal_that_a_library_swallows_is_taken_again(project: Path) -> None:
    """In a destructor Python drops what is raised; as an ImportError, it is no error of the command."""
    script = (
        "import os, signal, sys, time\n"
        "from pipeline.cli import main\n"
        "import pipeline.cli.commands, importlib\n"
        "application = importlib.import_module('pipeline.cli.app')\n"
        "class Odd:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
        "def dropped():\n"
        "    odd = Odd(); del odd\n"
        "    for _ in range(500): time.sleep(0.01)\n"
        "def turned():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(1)\n"
        "    except BaseException as error:\n"
        "        raise ImportError('initialization failed') from error\n"
        "application.app = dropped if sys.argv[1] == 'dropped' else turned\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "main()\n"
    )
    for how, code in (("dropped", 143), ("turned", 130)):
        line = [sys.executable, "-c", script, how]
        done = subprocess.run(line, capture_output=True, text=True, env=tiny.environment(), check=False)
        assert (done.returncode, done.stderr) == (code, "")


def test_what_is_ignored_stays_ignored(workdir: Path) -> None:
    """nohup, and a shell's &."""
    script = (
        "import os, signal, sys\n"
        "for number in (signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
        "from pipeline.cli import main\n"
        "import importlib, pipeline.cli.commands\n"
        "application = importlib.import_module('pipeline.cli.app')\n"
        "def app():\n"
        "    for number in (signal.SIGINT, signal.SIGHUP): os.kill(os.getpid(), number)\n"
        "    print('done')\n"
        "application.app = app\n"
        "main()\n"
    )
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, env=tiny.environment(), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
