"""How a process is stopped with its children, and where it may run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.store.processes import kill_group, stoppable, stopped_by, usable_processors
from tests import tiny


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_later_ones_do_not_disturb_the_cleaning_up(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    cleaned = list[bool]()
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit

    def run() -> None:
        with stoppable():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                cleaned.append(True)

    with pytest.raises(expected) as stop:
        run()
    assert cleaned == [True] and stopped_by() is None
    assert number == signal.SIGINT or stop.value.code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_another_thread_is_left_as_it_is() -> None:
    ended = list[bool]()

    def run() -> None:
        with stoppable():
            ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [True]


CHILD = "import os, sys; from pipeline.store.processes import end_with_parent; end_with_parent(parent={}); {}"


def gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_child_dies_with_its_parent_also_after_exec() -> None:
    child = CHILD.format("os.getppid()", "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])")
    sleep = "import time; print('up', flush=True); time.sleep(60)"
    script = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}, {sleep!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=tiny.environment(),
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(pid)


def test_a_child_whose_parent_is_gone_already_exits() -> None:
    code = CHILD.format(os.getpid() + 1, "print('still here')")
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=tiny.environment(), check=False
    )
    assert child.returncode == 1 and child.stdout == ""


def test_a_group_is_killed_with_its_grandchildren_and_may_be_gone() -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    leader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, process_group=0)
    assert leader.stdout is not None
    grandchild = int(leader.stdout.readline())
    kill_group(leader.pid)
    assert leader.wait(10) == -signal.SIGKILL
    until = time.monotonic() + 10
    while not gone(grandchild) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(grandchild)
    kill_group(leader.pid)


def test_the_processors_are_those_that_the_process_may_use() -> None:
    """As the kernel prints them: Cpus_allowed_list has ranges, '0-1,4'."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(one for one in status.splitlines() if one.startswith("Cpus_allowed_list:"))
    ranges = [part.split("-") for part in line.split(":")[1].strip().split(",")]
    assert usable_processors() == {n for one in ranges for n in range(int(one[0]), int(one[-1]) + 1)}
