"""Stages are done, fail, take too long or are skipped, and say why."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from runs.gpu.stages import Conductor, Stage

MODULE = """
import json, subprocess, sys, time
what = sys.argv[1]
if what == "done": print(json.dumps({"cwd": __import__("os").getcwd()}))
if what == "fails": print("loading", file=sys.stderr); sys.exit("error: no such graph")
if what == "killed": __import__("os").kill(__import__("os").getpid(), 9)
if what == "check":
    print(json.dumps([{"failures": ["prefill/logits is off"]}])); print("a warning", file=sys.stderr)
    sys.exit(1)
if what == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    open(sys.argv[2], "w").write(str(child.pid)); time.sleep(300)
"""


@pytest.fixture
def conductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conductor:
    (tmp_path / "acts.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for folder in ("work", "logs"):
        (tmp_path / folder).mkdir()
    return Conductor(tmp_path / "work", tmp_path / "logs", seconds=60.0, total=600.0)


def act(*command: str, **fields: object) -> Stage:
    return Stage(fields.pop("name", command[0]), command, module="acts", **fields)  # type: ignore[arg-type]


def test_a_stage_runs_in_the_project_and_its_answer_is_read(conductor: Conductor) -> None:
    told = []
    conductor.after = lambda: told.append(len(conductor.outcomes))
    outcome = conductor.run(act("done"))
    assert (outcome.status, outcome.reason, outcome.command) == ("done", "", "python -m acts done")
    assert conductor.output("done") == {"cwd": str(conductor.folder)} and told == [1]
    assert json.loads((conductor.logs / "01-done.json").read_text()) == outcome.output
    assert (conductor.logs / "01-done.command").read_text() == "python -m acts done\n"


def test_the_reason_of_a_failure_is_what_was_said_last(conductor: Conductor) -> None:
    assert conductor.run(act("fails")).reason == "exit 1: no such graph"
    check = conductor.run(act("check"))
    assert (check.status, check.reason) == ("failed", "exit 1: prefill/logits is off") and check.output
    killed = conductor.run(act("killed"))
    assert (killed.status, killed.reason[:16]) == ("failed", "ended by SIGKILL")
    assert conductor.run(act("done")).status == "done"


def test_what_needs_a_failed_stage_is_skipped(conductor: Conductor) -> None:
    conductor.run(act("fails"))
    outcome = conductor.run(act("done", needs=("fails",)))
    assert (outcome.status, outcome.reason) == ("skipped", "needs `fails`, which was failed")
    after = conductor.run(act("done", name="after", needs=("done",)))
    assert after.reason == "needs `done`, which was skipped" and not list(conductor.logs.glob("*done*"))


def test_a_lack_goes_before_anything_else(conductor: Conductor) -> None:
    outcome = conductor.run(act("done", skip="no GPU"))
    assert (outcome.status, outcome.reason, outcome.output) == ("skipped", "no GPU", None)


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_ended_with_its_children(conductor: Conductor, tmp_path: Path) -> None:
    """The child writes its number and sleeps; the limit is long enough for that on a busy machine."""
    conductor.seconds = 20.0
    number = tmp_path / "child"
    outcome = conductor.run(act("hangs", str(number)))
    assert (outcome.status, outcome.reason) == ("failed", "stopped after 20 s, its limit")
    assert has_ended(number.read_text())


def test_ctrl_c_ends_what_runs(conductor: Conductor, tmp_path: Path) -> None:
    """Also in tests that a shell has put into the background, where it lets them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    number = tmp_path / "child"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (number.is_file() and number.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            conductor.run(act("hangs", str(number)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert has_ended(number.read_text())


def has_ended(number: str) -> bool:
    """Whether a process is gone, or waits only for somebody to take note of it."""
    status, deadline = Path(f"/proc/{number}/status"), time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if "State:\tZ" in status.read_text():
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_when_the_whole_time_is_over_the_rest_is_skipped(conductor: Conductor) -> None:
    conductor.total = 4.0
    outcome = conductor.run(act("done"))
    assert outcome.status == "skipped" and "minutes for everything are over" in outcome.reason
